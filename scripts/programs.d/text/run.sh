set -e
awk '{ for (i = 1; i <= NF; i++) n[$i]++ } END { for (w in n) print n[w], w }' text | sort -k1,1nr -k2 | head -n 10
tr ' ' '\n' < text | sort | uniq -c | sort -rn | awk '{ s += $1 } END { print s, NR }'
sort --parallel=2 -S 200k text > sorted; sort -c sorted; sha256sum sorted
sed -n -E '10,20s/([a-z]+) ([a-z]+)/\2 \1/gp' text
sed -i.bak '1~3d; s/a/A/2' text; wc -l text text.bak
split -l 1000 --additional-suffix=.part text.bak; ls *.part
find . -name '*.part' -print0 | sort -z | xargs -0 -P 3 -n 2 sh -c 'for f; do tr a-z A-Z < "$f" > "$f.up"; done' sh
cat *.up | sha256sum
seq 1 40 | xargs -P 4 -I{} sh -c 'echo {} > tmp/{}'; cat tmp/* | sort -n | tail -n 1
seq 5 | xargs -n 1 -P 2 sh -c 'exit $(($1 == 3))' sh || echo "xargs $?"
join <(seq 1 2 20 | sort) <(seq 1 3 30 | sort) | tr '\n' ' '; echo
paste <(seq 3) <(seq 4 6) | expand | tee t1 | cat -A
comm -12 <(seq 10 | sort) <(seq 5 15 | sort) | tr '\n' ' '; echo
awk 'BEGIN { while (("seq 3" | getline x) > 0) s += x; close("seq 3"); print s; print "b\na" | "sort"; close("sort"); system("exit 3"); printf "%.12g\n", exp(1) }'
grep -c -E '(.)(.)\2\1' text.bak; grep -o -w -E 'a[a-z]*' text.bak | sort -u | head -n 5
head -c 100000 text.bak | od -An -tx1 | md5sum
cut -d' ' -f2-4 text.bak | fold -w 20 | nl | tail -n 2
find . -type f -name '*.part' -exec wc -c {} + | tail -n 1
bc <<< '2^200 % 1000007' 2> /dev/null || true
