# bash completion for setun
_setun() {
  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY=($(compgen -W "run chat inspect explain tokenize perplexity bench convert quantize doctor tune completion man help --help --version" -- "$current")); return; fi
  case "$current" in -*) case "${COMP_WORDS[1]}" in
    run) COMPREPLY=($(compgen -W "--help --prompt --file --raw --system --tokens --temperature --top-k --top-p --min-p --repetition-penalty --presence-penalty --frequency-penalty --logit-bias --seed --stop --lookup --ignore-end --logprobs --json --model --i2s-layout --no-map --weights --device --context --batch --kv-type --head --precision --no-fusion --no-activation-quantisation --threads --isa --pin --quiet --verbose" -- "$current"));;
    chat) COMPREPLY=($(compgen -W "--help --system --tokens --temperature --top-k --top-p --min-p --repetition-penalty --presence-penalty --frequency-penalty --logit-bias --seed --stop --lookup --ignore-end --model --i2s-layout --no-map --weights --device --context --batch --kv-type --head --precision --no-fusion --no-activation-quantisation --threads --isa --pin --quiet --verbose" -- "$current"));;
    inspect) COMPREPLY=($(compgen -W "--help --model --deep --json --i2s-layout --threads --quiet" -- "$current"));;
    explain) COMPREPLY=($(compgen -W "--help --measure --tokens --json --model --i2s-layout --no-map --weights --device --context --batch --kv-type --head --precision --no-fusion --no-activation-quantisation --threads --isa --pin --quiet --verbose" -- "$current"));;
    tokenize) COMPREPLY=($(compgen -W "--help --prompt --file --ids --decode --special --add-special --json --model --quiet" -- "$current"));;
    perplexity) COMPREPLY=($(compgen -W "--help --file --json --model --i2s-layout --no-map --weights --device --context --batch --kv-type --head --precision --no-fusion --no-activation-quantisation --threads --isa --pin --quiet --verbose" -- "$current"));;
    bench) COMPREPLY=($(compgen -W "--help --prompt --generate --depth --sequences --repeats --threads --report --json --model --i2s-layout --no-map --weights --device --context --batch --kv-type --head --precision --no-fusion --no-activation-quantisation --isa --pin --quiet --verbose" -- "$current"));;
    convert) COMPREPLY=($(compgen -W "--help --model --output --to --container --embedding --dense --i2s-layout --force --json --threads --quiet" -- "$current"));;
    quantize) COMPREPLY=($(compgen -W "--help --model --output --to --container --embedding --dense --i2s-layout --force --json --threads --quiet" -- "$current"));;
    doctor) COMPREPLY=($(compgen -W "--help --json --model --threads --isa --pin --quiet --verbose" -- "$current"));;
    tune) COMPREPLY=($(compgen -W "--help --device --output --no-store --repeats --json --threads --quiet --verbose" -- "$current"));;
  esac; return;; esac
  COMPREPLY=($(compgen -f -- "$current"))
}
complete -o filenames -F _setun setun
