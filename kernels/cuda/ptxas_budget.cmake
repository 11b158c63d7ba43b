# What ptxas says of each kernel is kept beside the object files, for the test cuda_ptxas_budget.
target_compile_options(vivarium_kernels PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Xptxas=-v>)
set_target_properties(vivarium_kernels PROPERTIES CUDA_COMPILER_LAUNCHER
  "${CMAKE_CURRENT_SOURCE_DIR}/cuda/keep_ptxas_log.sh;${CMAKE_CUDA_COMPILER_LAUNCHER}")
set(PTXAS_BUDGET ${CMAKE_CURRENT_SOURCE_DIR}/cuda/ptxas_budget.py)
set(PTXAS_BUDGET_ARGUMENTS ${CMAKE_CURRENT_SOURCE_DIR}/cuda/ptxas_budget.txt
                           ${CMAKE_CURRENT_BINARY_DIR}/CMakeFiles/vivarium_kernels.dir)
add_custom_target(cuda_ptxas_budget_update COMMAND ${PTXAS_BUDGET} --update ${PTXAS_BUDGET_ARGUMENTS}
                  DEPENDS vivarium_kernels VERBATIM)
