# bash completion of vivarium: the program itself says what may follow.
_vivarium() {
  local current="${COMP_WORDS[COMP_CWORD]}"
  local candidates
  candidates=$("${COMP_WORDS[0]}" complete "${COMP_WORDS[@]:1:COMP_CWORD-1}" 2>/dev/null | cut -f1)
  # Flags only where one is being typed; where nothing else fits, bash offers files.
  case "$current" in
    -*) ;;
    *) candidates=$(grep -v '^-' <<< "$candidates") ;;
  esac
  mapfile -t COMPREPLY < <(compgen -W "$candidates" -- "$current")
}
complete -o bashdefault -o default -F _vivarium vivarium
