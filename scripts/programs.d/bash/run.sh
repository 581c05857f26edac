# What bash does with processes. Standard error is part of the result.
set -u
echo "== pipes"
printf '%s\n' c a b | sort | tr a-z A-Z | { read -r x; echo "first $x"; cat; }
false | true | (exit 3); echo "statuses ${PIPESTATUS[*]}"
set -o pipefail; false | cat; echo "pipefail $?"; set +o pipefail
yes | head -n 3
seq 1 2000 | while read -r n; do echo $((n * n)); done | awk '{s += $1} END {print s}'
echo "== subshells"
x=1; (x=2; echo "inner $x"; exit 4); echo "outer $x, status $?"
y=$(echo one; echo two; exit 5); echo "$y ($?)"
echo "nested $(echo "a$(echo "b$(echo c)")")"
echo "== here-documents"
cat <<END
value $x, sum $((x + 2)), $(echo command)
END
cat <<'END' | sed 's/^/> /'
verbatim $x $(no)
END
cat <<< "a here-string"
echo "== process substitution"
diff <(printf '1\n2\n3\n') <(printf '1\n3\n3\n'); echo "diff $?"
tee >(wc -c > count) < <(head -c 1000 /dev/zero) > /dev/null; sleep 0.2; cat count
echo "== background jobs"
for i in 1 2 3; do (sleep 0.0$i; echo "job $i" > out$i; exit $i) & pids[i]=$!; done
for i in 1 2 3; do wait "${pids[i]}"; echo "wait $?"; done
cat out1 out2 out3
(exit 9) & wait -n; echo "wait -n $?"
{ sleep 100 & p=$!; kill -TERM $p; wait $p; } 2> /dev/null; echo "killed $?"
{ sleep 100 & p=$!; kill -KILL $p; wait $p; } 2> /dev/null; echo "killed $?"
wait 99999999 2> /dev/null; echo "no child $?"
echo "== traps"
(trap 'echo "got USR1"; exit 6' USR1; kill -USR1 $BASHPID; sleep 5); echo "status $?"
(trap 'echo "at exit $?"' EXIT; exit 7); echo "status $?"
(trap '' TERM; kill -TERM $BASHPID; echo "ignored")
trap 'echo "child ended"' CHLD; (exit 0) & wait; trap - CHLD
bash -c 'trap "echo err on line \$LINENO" ERR; false; true'
{ bash -c 'kill -SEGV $$'; } 2> /dev/null; echo "dies with $?"
trap 'echo alarm' ALRM; (sleep 0.1; kill -ALRM $$) & wait; wait; trap - ALRM
echo "== coprocess"
coproc UP { while read -r l; do echo "${l^^}"; done; }
echo "hello" >&"${UP[1]}"; read -r l <&"${UP[0]}"; echo "$l"
p=$UP_PID; exec {UP[1]}>&-; wait "$p"; echo "coprocess $?"
echo "== descriptors"
exec 5> five; echo "to five" >&5; exec 5>&-; cat five
{ echo out; echo err >&2; } 2>&1 > /dev/null | sed 's/^/piped: /'
echo "== exec, env, limits"
(exec env -i A=b /usr/bin/env)
(exec -a other /bin/bash -c 'echo "$0"')
(exec /does/not/exist) ; echo "status $?"
/etc/passwd; echo "status $?"
nosuchcommand; echo "status $?"
bash -c 'ulimit -n 64; ulimit -n'
timeout 0.1 sleep 10; echo "timeout $?"
echo "== many"
for i in $(seq 1 100); do /bin/true || echo bad; done; echo "100 children"
n=0; for i in $(seq 1 30); do n=$((n + $(echo "$i"))); done; echo "sum $n"
wait; jobs; echo end
exit 23
