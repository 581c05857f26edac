export PARALLEL_HOME=$PWD/tmp; mkdir -p tmp; touch tmp/will-cite
parallel --will-cite -j2 -k 'echo {} squared is $(({} * {}))' ::: $(seq 12)
parallel --will-cite -j2 -k --halt soon,fail=1 'test {} -lt 4 || exit 3' ::: 1 2 3 4 5; echo "status $?"
seq 1000 | parallel --will-cite -j2 -k --pipe -N 250 'awk "{ s += \$1 } END { print s }"'
