#!/bin/sh
# The house rules that a script can check; CTest runs it. usage: check_house.sh SOURCE_FOLDER
#  - a room includes itself and strictly lower floors (DESIGN: rooms and floors in docs/architecture.md)
#  - the program includes the public header only
#  - the library allocates through base/memory.c alone, never prints, exits or reads the environment outside its door
set -eu
cd "${1:-.}"
bad=0
say() { echo "$1"; bad=1; }
floor() { case $1 in base) echo 0;; tensor|ternary) echo 1;; file) echo 2;; text) echo 3;; model) echo 4;; graph) echo 5;; plan) echo 6;; backend) echo 7;; run) echo 8;; setun) echo -1;; *) echo 99;; esac; }
for f in $(find src -name '*.c' -o -name '*.h' -o -name '*.inc' -o -name '*.def'); do
    room=$(echo "$f" | cut -d/ -f2)
    [ "$room" = api.c ] && continue
    own=$(floor "$room")
    for included in $(sed -n 's/^# *include "\([^"]*\)".*/\1/p' "$f"); do
        case $included in
            setun/setun.h) continue ;;
            */*) other=${included%%/*} ;;
            *) continue ;; # beside the file itself
        esac
        there=$(floor "$other")
        [ "$there" != 99 ] || { say "$f: includes \"$included\", which is in no room"; continue; }
        [ "$other" = "$room" ] || [ "$there" -lt "$own" ] || say "$f: floor $own includes \"$included\" of floor $there"
    done
done
for f in app/*.c app/*.h; do
    for included in $(sed -n 's/^# *include "\([^"]*\)".*/\1/p' "$f"); do
        case $included in setun/setun.h) ;; */*) say "$f: includes \"$included\": the program uses the public header only" ;; esac
    done
done
check() { # pattern, allowed files, why
    found=$(grep -nE "$1" -r src --include='*.c' --include='*.h' --include='*.inc' | grep -vE "$2" | grep -vE '^[^:]*:[0-9]*: *(\*|/\*|//)' || true)
    [ -z "$found" ] || { echo "$found"; say "$3"; }
}
check '(^|[^_a-zA-Z.>])(malloc|calloc|realloc|strdup|strndup|posix_memalign|aligned_alloc) *\(' '^src/base/memory\.c' 'allocate through setun_alloc and its kin'
check '(^|[^_a-zA-Z.>])free *\(' '^src/base/memory\.c|^src/base/.*setun_free' 'free through setun_free'
check '(^|[^_a-zA-Z])(printf|fprintf|puts|putchar|perror) *\(' '^src/base/status\.c' 'the library does not print'
check '(^|[^_a-zA-Z])(exit|abort|_exit|assert) *\(' '^$' 'the library does not exit or abort'
check '(^|[^_a-zA-Z])getenv *\(' '^src/api\.c|^src/base/environment\.c' 'the environment is read once, when a context is made'
for f in $(find src app -name '*.c'); do
    lines=$(wc -l <"$f")
    [ "$lines" -le 1000 ] || say "$f: $lines lines; files stay under 1000"
done
[ "$bad" = 0 ] && echo "the house is in order"
exit $bad
