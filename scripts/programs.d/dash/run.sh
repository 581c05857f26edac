set -u
printf 'b\na\n' | sort | while read -r l; do echo "line $l"; done
v=$(printf 'x%s' "$(echo inner)"); echo "$v"
cat <<END
here ${v} $((6 * 7))
END
trap 'echo "trapped"' USR1; kill -USR1 $$; trap - USR1
(trap 'echo bye' EXIT; exit 3); echo "status $?"
sleep 0.1 & a=$!; (exit 5) & b=$!; wait $b; echo "b $?"; wait $a; echo "a $?"
# A child in the background ignores SIGINT, from its first command on: it says when it is there.
mkfifo there; (echo > there; exec sleep 50) & p=$!; read -r x < there; kill -INT $p; kill $p; wait $p; echo "killed $?"; rm there
i=0; while [ $i -lt 50 ]; do i=$((i + 1)); r=$(echo $i | tr 0-9 a-j); done; echo "$r"
mkfifo pipe; (cat pipe | wc -c) & printf 'through a fifo' > pipe; wait; rm pipe
f() { ( cd / && pwd ); pwd | sed 's/.*\///'; }; f
ls /does/not/exist > /dev/null 2>&1 || echo "ls failed"
exec 3>&1; (echo to three >&3); echo "$0 $#"
set -e; (false) || echo "or"; sh -c 'exit 7' || echo "status $?"
echo "done" | { read -r x; exit 11; }
