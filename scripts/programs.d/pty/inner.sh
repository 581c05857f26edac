test -t 1 && echo "standard output is a terminal"
set -m
sleep 0.2 & echo "started"
fg > /dev/null; echo "ended $?"
(trap 'echo hang-up; exit 3' HUP; kill -HUP $$) 2> /dev/null
trap 'echo interrupted' INT; kill -INT $$
exit 4
