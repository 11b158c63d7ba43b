# fish completion of vivarium: the program itself says what may follow.
function __vivarium_candidates
    set -l words (commandline -opc)
    $words[1] complete $words[2..-1] 2>/dev/null
end
complete -c vivarium -a '(__vivarium_candidates)'
