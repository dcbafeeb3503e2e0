#!/bin/sh
# Every command as a person would use it: answers, exit status, --json, --help, bad input. usage: test_program.sh PROGRAM SOURCE
set -u
setun=$1; source=$2
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
export SETUN_MODEL="$source/models/setun-smol-135m.gguf"
[ -f "$SETUN_MODEL" ] || { echo "no model"; exit 77; }
bad=0
expect() { # status, pattern in stdout+stderr, command ..
    want=$1; pattern=$2; shift 2
    "$@" >"$work/out" 2>&1 </dev/null
    got=$?
    if [ "$got" != "$want" ]; then echo "FAILED: $* : exit status $got, not $want"; sed 's/^/    /' "$work/out" | head -n 20; bad=1; return; fi
    if ! grep -qE -- "$pattern" "$work/out"; then echo "FAILED: $* : no '$pattern' in:"; sed 's/^/    /' "$work/out" | head -n 20; bad=1; fi
}
json() { # key, command ..: stdout is JSON that has the key
    key=$1; shift
    "$@" >"$work/out" 2>"$work/err" </dev/null || { echo "FAILED: $*"; cat "$work/err"; bad=1; return; }
    if command -v python3 >/dev/null 2>&1; then
        python3 -c 'import json,sys
v = json.load(open(sys.argv[1]))
for k in sys.argv[2].split("."): v = v[int(k)] if isinstance(v, list) else v[k]
assert v is not None' "$work/out" "$key" || { echo "FAILED: $*: no $key"; bad=1; }
    fi
}
expect 2 'usage: setun' "$setun"
expect 0 'usage: setun' "$setun" --help
expect 0 '^setun [0-9]' "$setun" --version
expect 2 "unknown command 'fly'" "$setun" fly
for c in run chat inspect explain tokenize perplexity bench convert quantize doctor tune; do
    expect 0 'example:' "$setun" $c --help
    expect 0 'example:' "$setun" help $c
    expect 2 'unknown option' "$setun" $c --no-such-option
done
expect 0 'Paris' "$setun" run -q -n 12 "What is the capital of France?"
expect 0 'Paris' "$setun" run -q -n 12 -p "What is the capital of France?" --threads 1 --no-fusion
printf 'What is the capital of France?' >"$work/prompt"
expect 0 'Paris' "$setun" run -q -n 12 -f "$work/prompt"
"$setun" run -q -n 12 <"$work/prompt" | grep -q Paris || { echo "FAILED: a prompt from standard input"; bad=1; }
expect 0 'Paris' "$setun" run -q -n 12 --raw "The capital of France is"
expect 2 'the prompt once' "$setun" run -p a b
expect 2 'whole number' "$setun" run -n x y
expect 1 'no-such-file' "$setun" run -m "$work/no-such-file" x
expect 1 'does not fit|context' "$setun" run -c 16 "What is the capital of France? And of Spain? And of Portugal?"
json text "$setun" run --json -n 4 --logprobs 3 Hello
json tokens.0.top.2.logprob "$setun" run --json -n 4 --logprobs 3 Hello
expect 0 'The capital of$|The capital $|The capital of ' "$setun" run -q -n 30 --stop "France" "What is the capital of France?"
a=$("$setun" run -q -n 24 --temperature 0.9 --top-k 40 --seed 7 --threads 1 "Tell me a story"); b=$("$setun" run -q -n 24 --temperature 0.9 --top-k 40 --seed 7 --threads 2 "Tell me a story")
c=$("$setun" run -q -n 24 --temperature 0.9 --top-k 40 --seed 8 "Tell me a story")
[ "$a" = "$b" ] || { echo "FAILED: one seed, two texts: $a | $b"; bad=1; }
[ "$a" != "$c" ] || { echo "FAILED: two seeds, one text"; bad=1; }
printf 'What is the capital of France?\n/stats\n/undo\n/history\n/nonsense\nHello!\\\nHow are you?\n/save %s/chat.json\n' "$work" | "$setun" chat -q -n 10 >"$work/out" 2>&1 || { echo "FAILED: chat"; bad=1; }
grep -q Paris "$work/out" || { echo "FAILED: chat does not answer"; cat "$work/out"; bad=1; }
grep -q "unknown command '/nonsense'" "$work/out" || { echo "FAILED: chat takes any command"; bad=1; }
grep -q '"assistant"' "$work/chat.json" || { echo "FAILED: chat /save"; bad=1; }
expect 0 'parameters' "$setun" inspect
expect 0 'blk.29.ffn_down' "$setun" inspect
json totals.parameters "$setun" inspect --json
json tensors.6.zero_share "$setun" inspect --json --deep
expect 1 'no-such' "$setun" inspect "$work/no-such"
expect 0 'attention' "$setun" explain
json plan.steps "$setun" explain --json
expect 0 '19556' "$setun" tokenize --ids Hello
expect 0 '^Hello!$' "$setun" tokenize --decode 19556 17
expect 1 'no token id' "$setun" tokenize --decode 999999
json tokens.0.id "$setun" tokenize --json Hello
printf 'The sun had set on a beautiful summer evening, and the scent of blooming flowers filled the air. It was a magical moment.\n' >"$work/text"
expect 0 'perplexity [0-9]' "$setun" perplexity -q -f "$work/text"
json perplexity "$setun" perplexity --json -f "$work/text"
json prefill.median "$setun" bench --json --prompt 16 --generate 4 --repeats 2
expect 0 'weights: [0-9.]+ % of .* the file is mapped' "$setun" bench -q --prompt 8 --generate 2 --repeats 1
json decode.token_ms.p95 "$setun" bench --json --prompt 16 --generate 4 --repeats 2 --depth 0,32 --threads 1,2
json isa "$setun" doctor --json
expect 0 'setun-smol|kernels' "$setun" doctor -q
if "$setun" doctor --json 2>/dev/null | grep -q '"mlx:gpu"'; then :; else expect 1 'nothing (to tune|was measured)' "$setun" tune; fi
small="$source/tests/golden/families/bitnet_packed"; [ -f "$small/model.gguf" ] && small="$small/model.gguf"
expect 0 'the same bits, error at most 0 ' "$setun" bench -q -m "$small" --report "$work/report.json" --device cpu --prompt 8 --generate 4 --repeats 1
expect 2 'unknown option|needs an argument' "$setun" bench --report
expect 1 'no-such' "$setun" bench -q -m "$small" --report "$work/no-such/report.json" --device cpu --prompt 4 --generate 2 --repeats 1
report_has() { # file, Python expression over `r`
    command -v python3 >/dev/null 2>&1 || return
    python3 -c 'import json,sys
r = json.load(open(sys.argv[1]))
assert eval(sys.argv[2]), r' "$1" "$2" || { echo "FAILED: report: not $2"; bad=1; }
}
report_has "$work/report.json" 'r["setun_report"] == 1 and r["valid"] and len(r["devices"]) == 1 and r["machine"]["measured"]["read_bytes_per_second_n"] > 0'
report_has "$work/report.json" 'r["devices"][0]["completed"] and r["devices"][0]["validation"]["same_bits"] == 16 and r["devices"][0]["measured"]["runs"][0]["decode"]["median"] > 0'
if "$setun" doctor --json 2>/dev/null | grep -q '"id": "mlx:cpu"'; then
    expect 0 'kernels +50 of 50 calls the same bits' "$setun" bench -q -m "$small" --report "$work/report.json" --device mlx:cpu --prompt 8 --generate 4 --repeats 1
    report_has "$work/report.json" '[d["device"] for d in r["devices"]] == ["cpu", "mlx:cpu"] and r["valid"]'
    report_has "$work/report.json" 'r["devices"][1]["kernels"]["checked"] == r["devices"][1]["kernels"]["same_bits"] and r["devices"][1]["kernels"]["read_bytes_per_second"] > 1e6'
    report_has "$work/report.json" 'r["devices"][1]["plan"]["run"]["synchronisations"] == 1 and r["devices"][1]["plan"]["run"]["operations"] == 0 and r["devices"][1]["measured"]["device"]["synchronisations_a_run"] == 1'
else
    expect 1 'MLX' "$setun" bench -q -m "$small" --report "$work/report.json" --device mlx:cpu --prompt 4 --generate 2 --repeats 1
    report_has "$work/report.json" 'not r["valid"] and r["devices"][0]["completed"] and not r["devices"][1]["completed"] and "problem" in r["devices"][1]'
fi
expect 1 'CPU backend has no group sizes' "$setun" tune --device cpu
expect 2 'repeats must be 1' "$setun" tune --repeats 0
expect 0 'exactly the same' "$setun" convert "$SETUN_MODEL" "$work/a.gguf" --to iq2_bn
expect 1 'exists' "$setun" convert "$SETUN_MODEL" "$work/a.gguf"
expect 0 'Paris' "$setun" run -q -n 12 -m "$work/a.gguf" "What is the capital of France?"
expect 0 'MiB' "$setun" convert "$SETUN_MODEL" "$work/folder" --embedding bf16
expect 0 'Paris' "$setun" run -q -n 12 -m "$work/folder" "What is the capital of France?"
json decode.median "$setun" bench --json -m "$work/folder" --prompt 4 --generate 2 --repeats 1
[ -z "$(ls "$work" | grep tmp)" ] || { echo "FAILED: temporaries were left: $(ls "$work")"; bad=1; }
head -c 100000 "$SETUN_MODEL" >"$work/cut.gguf"
expect 1 'cut.gguf' "$setun" run -m "$work/cut.gguf" Hello
expect 1 '.' "$setun" run -m "$source/README.md" Hello
"$setun" run -q --ignore-end -n 2000 "Tell me a long story" >"$work/out" 2>&1 & pid=$!
tries=0; until [ -s "$work/out" ] || [ $tries = 300 ]; do sleep 0.1; tries=$((tries + 1)); done
kill -INT $pid; wait $pid; got=$?
[ "$got" = 130 ] || { echo "FAILED: Ctrl-C: exit status $got"; bad=1; }
"$setun" run -q -n 400 --ignore-end Hello 2>"$work/err" | head -c 10 >/dev/null
"$setun" man | cmp - "$source/docs/setun.1" || { echo "FAILED: docs/setun.1 is not what \`setun man\` prints"; bad=1; }
for pair in bash:setun.bash zsh:_setun fish:setun.fish; do
    "$setun" completion ${pair%%:*} | cmp - "$source/app/completions/${pair##*:}" || { echo "FAILED: completions of ${pair%%:*} are old"; bad=1; }
done
bash -n "$source/app/completions/setun.bash" 2>/dev/null || { command -v bash >/dev/null && { echo "FAILED: the bash completion does not parse"; bad=1; }; }
[ $bad = 0 ] && echo "the program does what it says"
exit $bad
