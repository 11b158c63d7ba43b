# void cuda_on_cpu_switch_stack(void** save_stack_pointer, void* load_stack_pointer)
# Saves the callee-saved registers of the System V x86-64 ABI on this stack, leaves its pointer in
# *save_stack_pointer, and goes on where load_stack_pointer left off.
.text
.globl cuda_on_cpu_switch_stack
.type cuda_on_cpu_switch_stack, @function
cuda_on_cpu_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_cpu_switch_stack, .-cuda_on_cpu_switch_stack
.section .note.GNU-stack,"",@progbits
