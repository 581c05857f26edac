set -e
javac -J-Xshare:auto Main.java
# The collector with most threads, the plain one, and the interpreter alone.
for flags in "-XX:+UseG1GC -Xmx64m" "-XX:+UseSerialGC -Xmx48m -XX:TieredStopAtLevel=1" "-Xint -XX:+UseParallelGC -Xmx64m"; do
    echo "== $flags"
    java $flags -XX:-UsePerfData Main || echo "status $?"
done
