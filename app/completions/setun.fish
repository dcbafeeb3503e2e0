# fish completion for setun
complete -c setun -n __fish_use_subcommand -a run -d "answer a prompt"
complete -c setun -n "__fish_seen_subcommand_from run" -l prompt -s p -x
complete -c setun -n "__fish_seen_subcommand_from run" -l file -s f -r
complete -c setun -n "__fish_seen_subcommand_from run" -l raw
complete -c setun -n "__fish_seen_subcommand_from run" -l system -x
complete -c setun -n "__fish_seen_subcommand_from run" -l tokens -s n -x
complete -c setun -n "__fish_seen_subcommand_from run" -l temperature -x
complete -c setun -n "__fish_seen_subcommand_from run" -l top-k -x
complete -c setun -n "__fish_seen_subcommand_from run" -l top-p -x
complete -c setun -n "__fish_seen_subcommand_from run" -l min-p -x
complete -c setun -n "__fish_seen_subcommand_from run" -l repetition-penalty -x
complete -c setun -n "__fish_seen_subcommand_from run" -l presence-penalty -x
complete -c setun -n "__fish_seen_subcommand_from run" -l frequency-penalty -x
complete -c setun -n "__fish_seen_subcommand_from run" -l logit-bias -x
complete -c setun -n "__fish_seen_subcommand_from run" -l seed -s s -x
complete -c setun -n "__fish_seen_subcommand_from run" -l stop -x
complete -c setun -n "__fish_seen_subcommand_from run" -l lookup -x
complete -c setun -n "__fish_seen_subcommand_from run" -l ignore-end
complete -c setun -n "__fish_seen_subcommand_from run" -l logprobs -x
complete -c setun -n "__fish_seen_subcommand_from run" -l json
complete -c setun -n "__fish_seen_subcommand_from run" -l model -s m -r
complete -c setun -n "__fish_seen_subcommand_from run" -l i2s-layout -x
complete -c setun -n "__fish_seen_subcommand_from run" -l no-map
complete -c setun -n "__fish_seen_subcommand_from run" -l weights -x
complete -c setun -n "__fish_seen_subcommand_from run" -l device -x
complete -c setun -n "__fish_seen_subcommand_from run" -l context -s c -x
complete -c setun -n "__fish_seen_subcommand_from run" -l batch -s b -x
complete -c setun -n "__fish_seen_subcommand_from run" -l kv-type -x
complete -c setun -n "__fish_seen_subcommand_from run" -l head -x
complete -c setun -n "__fish_seen_subcommand_from run" -l precision -x
complete -c setun -n "__fish_seen_subcommand_from run" -l no-fusion
complete -c setun -n "__fish_seen_subcommand_from run" -l no-activation-quantisation
complete -c setun -n "__fish_seen_subcommand_from run" -l threads -s t -x
complete -c setun -n "__fish_seen_subcommand_from run" -l isa -x
complete -c setun -n "__fish_seen_subcommand_from run" -l pin
complete -c setun -n "__fish_seen_subcommand_from run" -l quiet -s q
complete -c setun -n "__fish_seen_subcommand_from run" -l verbose -s v
complete -c setun -n __fish_use_subcommand -a chat -d "talk with a model"
complete -c setun -n "__fish_seen_subcommand_from chat" -l system -x
complete -c setun -n "__fish_seen_subcommand_from chat" -l tokens -s n -x
complete -c setun -n "__fish_seen_subcommand_from chat" -l temperature -x
complete -c setun -n "__fish_seen_subcommand_from chat" -l top-k -x
complete -c setun -n "__fish_seen_subcommand_from chat" -l top-p -x
complete -c setun -n "__fish_seen_subcommand_from chat" -l min-p -x
complete -c setun -n "__fish_seen_subcommand_from chat" -l repetition-penalty -x
complete -c setun -n "__fish_seen_subcommand_from chat" -l presence-penalty -x
complete -c setun -n "__fish_seen_subcommand_from chat" -l frequency-penalty -x
complete -c setun -n "__fish_seen_subcommand_from chat" -l logit-bias -x
complete -c setun -n "__fish_seen_subcommand_from chat" -l seed -s s -x
complete -c setun -n "__fish_seen_subcommand_from chat" -l stop -x
complete -c setun -n "__fish_seen_subcommand_from chat" -l lookup -x
complete -c setun -n "__fish_seen_subcommand_from chat" -l ignore-end
complete -c setun -n "__fish_seen_subcommand_from chat" -l model -s m -r
complete -c setun -n "__fish_seen_subcommand_from chat" -l i2s-layout -x
complete -c setun -n "__fish_seen_subcommand_from chat" -l no-map
complete -c setun -n "__fish_seen_subcommand_from chat" -l weights -x
complete -c setun -n "__fish_seen_subcommand_from chat" -l device -x
complete -c setun -n "__fish_seen_subcommand_from chat" -l context -s c -x
complete -c setun -n "__fish_seen_subcommand_from chat" -l batch -s b -x
complete -c setun -n "__fish_seen_subcommand_from chat" -l kv-type -x
complete -c setun -n "__fish_seen_subcommand_from chat" -l head -x
complete -c setun -n "__fish_seen_subcommand_from chat" -l precision -x
complete -c setun -n "__fish_seen_subcommand_from chat" -l no-fusion
complete -c setun -n "__fish_seen_subcommand_from chat" -l no-activation-quantisation
complete -c setun -n "__fish_seen_subcommand_from chat" -l threads -s t -x
complete -c setun -n "__fish_seen_subcommand_from chat" -l isa -x
complete -c setun -n "__fish_seen_subcommand_from chat" -l pin
complete -c setun -n "__fish_seen_subcommand_from chat" -l quiet -s q
complete -c setun -n "__fish_seen_subcommand_from chat" -l verbose -s v
complete -c setun -n __fish_use_subcommand -a inspect -d "show what a model file holds"
complete -c setun -n "__fish_seen_subcommand_from inspect" -l model -s m -r
complete -c setun -n "__fish_seen_subcommand_from inspect" -l deep
complete -c setun -n "__fish_seen_subcommand_from inspect" -l json
complete -c setun -n "__fish_seen_subcommand_from inspect" -l i2s-layout -x
complete -c setun -n "__fish_seen_subcommand_from inspect" -l threads -s t -x
complete -c setun -n "__fish_seen_subcommand_from inspect" -l quiet -s q
complete -c setun -n __fish_use_subcommand -a explain -d "show how a model is computed"
complete -c setun -n "__fish_seen_subcommand_from explain" -l measure
complete -c setun -n "__fish_seen_subcommand_from explain" -l tokens -s n -x
complete -c setun -n "__fish_seen_subcommand_from explain" -l json
complete -c setun -n "__fish_seen_subcommand_from explain" -l model -s m -r
complete -c setun -n "__fish_seen_subcommand_from explain" -l i2s-layout -x
complete -c setun -n "__fish_seen_subcommand_from explain" -l no-map
complete -c setun -n "__fish_seen_subcommand_from explain" -l weights -x
complete -c setun -n "__fish_seen_subcommand_from explain" -l device -x
complete -c setun -n "__fish_seen_subcommand_from explain" -l context -s c -x
complete -c setun -n "__fish_seen_subcommand_from explain" -l batch -s b -x
complete -c setun -n "__fish_seen_subcommand_from explain" -l kv-type -x
complete -c setun -n "__fish_seen_subcommand_from explain" -l head -x
complete -c setun -n "__fish_seen_subcommand_from explain" -l precision -x
complete -c setun -n "__fish_seen_subcommand_from explain" -l no-fusion
complete -c setun -n "__fish_seen_subcommand_from explain" -l no-activation-quantisation
complete -c setun -n "__fish_seen_subcommand_from explain" -l threads -s t -x
complete -c setun -n "__fish_seen_subcommand_from explain" -l isa -x
complete -c setun -n "__fish_seen_subcommand_from explain" -l pin
complete -c setun -n "__fish_seen_subcommand_from explain" -l quiet -s q
complete -c setun -n "__fish_seen_subcommand_from explain" -l verbose -s v
complete -c setun -n __fish_use_subcommand -a tokenize -d "turn text into tokens, or back"
complete -c setun -n "__fish_seen_subcommand_from tokenize" -l prompt -s p -x
complete -c setun -n "__fish_seen_subcommand_from tokenize" -l file -s f -r
complete -c setun -n "__fish_seen_subcommand_from tokenize" -l ids
complete -c setun -n "__fish_seen_subcommand_from tokenize" -l decode
complete -c setun -n "__fish_seen_subcommand_from tokenize" -l special
complete -c setun -n "__fish_seen_subcommand_from tokenize" -l add-special
complete -c setun -n "__fish_seen_subcommand_from tokenize" -l json
complete -c setun -n "__fish_seen_subcommand_from tokenize" -l model -s m -r
complete -c setun -n "__fish_seen_subcommand_from tokenize" -l quiet -s q
complete -c setun -n __fish_use_subcommand -a perplexity -d "measure how well a model predicts a text"
complete -c setun -n "__fish_seen_subcommand_from perplexity" -l file -s f -r
complete -c setun -n "__fish_seen_subcommand_from perplexity" -l json
complete -c setun -n "__fish_seen_subcommand_from perplexity" -l model -s m -r
complete -c setun -n "__fish_seen_subcommand_from perplexity" -l i2s-layout -x
complete -c setun -n "__fish_seen_subcommand_from perplexity" -l no-map
complete -c setun -n "__fish_seen_subcommand_from perplexity" -l weights -x
complete -c setun -n "__fish_seen_subcommand_from perplexity" -l device -x
complete -c setun -n "__fish_seen_subcommand_from perplexity" -l context -s c -x
complete -c setun -n "__fish_seen_subcommand_from perplexity" -l batch -s b -x
complete -c setun -n "__fish_seen_subcommand_from perplexity" -l kv-type -x
complete -c setun -n "__fish_seen_subcommand_from perplexity" -l head -x
complete -c setun -n "__fish_seen_subcommand_from perplexity" -l precision -x
complete -c setun -n "__fish_seen_subcommand_from perplexity" -l no-fusion
complete -c setun -n "__fish_seen_subcommand_from perplexity" -l no-activation-quantisation
complete -c setun -n "__fish_seen_subcommand_from perplexity" -l threads -s t -x
complete -c setun -n "__fish_seen_subcommand_from perplexity" -l isa -x
complete -c setun -n "__fish_seen_subcommand_from perplexity" -l pin
complete -c setun -n "__fish_seen_subcommand_from perplexity" -l quiet -s q
complete -c setun -n "__fish_seen_subcommand_from perplexity" -l verbose -s v
complete -c setun -n __fish_use_subcommand -a bench -d "measure prefill and decode speed"
complete -c setun -n "__fish_seen_subcommand_from bench" -l prompt -x
complete -c setun -n "__fish_seen_subcommand_from bench" -l generate -x
complete -c setun -n "__fish_seen_subcommand_from bench" -l depth -x
complete -c setun -n "__fish_seen_subcommand_from bench" -l sequences -x
complete -c setun -n "__fish_seen_subcommand_from bench" -l repeats -x
complete -c setun -n "__fish_seen_subcommand_from bench" -l threads -s t -x
complete -c setun -n "__fish_seen_subcommand_from bench" -l report -r
complete -c setun -n "__fish_seen_subcommand_from bench" -l json
complete -c setun -n "__fish_seen_subcommand_from bench" -l model -s m -r
complete -c setun -n "__fish_seen_subcommand_from bench" -l i2s-layout -x
complete -c setun -n "__fish_seen_subcommand_from bench" -l no-map
complete -c setun -n "__fish_seen_subcommand_from bench" -l weights -x
complete -c setun -n "__fish_seen_subcommand_from bench" -l device -x
complete -c setun -n "__fish_seen_subcommand_from bench" -l context -s c -x
complete -c setun -n "__fish_seen_subcommand_from bench" -l batch -s b -x
complete -c setun -n "__fish_seen_subcommand_from bench" -l kv-type -x
complete -c setun -n "__fish_seen_subcommand_from bench" -l head -x
complete -c setun -n "__fish_seen_subcommand_from bench" -l precision -x
complete -c setun -n "__fish_seen_subcommand_from bench" -l no-fusion
complete -c setun -n "__fish_seen_subcommand_from bench" -l no-activation-quantisation
complete -c setun -n "__fish_seen_subcommand_from bench" -l isa -x
complete -c setun -n "__fish_seen_subcommand_from bench" -l pin
complete -c setun -n "__fish_seen_subcommand_from bench" -l quiet -s q
complete -c setun -n "__fish_seen_subcommand_from bench" -l verbose -s v
complete -c setun -n __fish_use_subcommand -a convert -d "rewrite a model in another format"
complete -c setun -n "__fish_seen_subcommand_from convert" -l model -s m -r
complete -c setun -n "__fish_seen_subcommand_from convert" -l output -s o -r
complete -c setun -n "__fish_seen_subcommand_from convert" -l to -x
complete -c setun -n "__fish_seen_subcommand_from convert" -l container -x
complete -c setun -n "__fish_seen_subcommand_from convert" -l embedding -x
complete -c setun -n "__fish_seen_subcommand_from convert" -l dense -x
complete -c setun -n "__fish_seen_subcommand_from convert" -l i2s-layout -x
complete -c setun -n "__fish_seen_subcommand_from convert" -l force
complete -c setun -n "__fish_seen_subcommand_from convert" -l json
complete -c setun -n "__fish_seen_subcommand_from convert" -l threads -s t -x
complete -c setun -n "__fish_seen_subcommand_from convert" -l quiet -s q
complete -c setun -n __fish_use_subcommand -a quantize -d "make the linear weights of a float model ternary"
complete -c setun -n "__fish_seen_subcommand_from quantize" -l model -s m -r
complete -c setun -n "__fish_seen_subcommand_from quantize" -l output -s o -r
complete -c setun -n "__fish_seen_subcommand_from quantize" -l to -x
complete -c setun -n "__fish_seen_subcommand_from quantize" -l container -x
complete -c setun -n "__fish_seen_subcommand_from quantize" -l embedding -x
complete -c setun -n "__fish_seen_subcommand_from quantize" -l dense -x
complete -c setun -n "__fish_seen_subcommand_from quantize" -l i2s-layout -x
complete -c setun -n "__fish_seen_subcommand_from quantize" -l force
complete -c setun -n "__fish_seen_subcommand_from quantize" -l json
complete -c setun -n "__fish_seen_subcommand_from quantize" -l threads -s t -x
complete -c setun -n "__fish_seen_subcommand_from quantize" -l quiet -s q
complete -c setun -n __fish_use_subcommand -a doctor -d "check this machine and installation"
complete -c setun -n "__fish_seen_subcommand_from doctor" -l json
complete -c setun -n "__fish_seen_subcommand_from doctor" -l model -s m -r
complete -c setun -n "__fish_seen_subcommand_from doctor" -l threads -s t -x
complete -c setun -n "__fish_seen_subcommand_from doctor" -l isa -x
complete -c setun -n "__fish_seen_subcommand_from doctor" -l pin
complete -c setun -n "__fish_seen_subcommand_from doctor" -l quiet -s q
complete -c setun -n "__fish_seen_subcommand_from doctor" -l verbose -s v
complete -c setun -n __fish_use_subcommand -a tune -d "measure the GPU kernels' group sizes"
complete -c setun -n "__fish_seen_subcommand_from tune" -l device -x
complete -c setun -n "__fish_seen_subcommand_from tune" -l output -s o -r
complete -c setun -n "__fish_seen_subcommand_from tune" -l no-store
complete -c setun -n "__fish_seen_subcommand_from tune" -l repeats -x
complete -c setun -n "__fish_seen_subcommand_from tune" -l json
complete -c setun -n "__fish_seen_subcommand_from tune" -l threads -s t -x
complete -c setun -n "__fish_seen_subcommand_from tune" -l quiet -s q
complete -c setun -n "__fish_seen_subcommand_from tune" -l verbose -s v
