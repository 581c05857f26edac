set -e
for c in gzip xz bzip2; do
    command -v $c > /dev/null || continue
    tar --sort=name --mtime=@1600000000 --owner=0 --group=0 --numeric-owner --use-compress-program=$c -cf tree.tar.$c tree
    mkdir $c; tar -C $c -xf tree.tar.$c
    diff -r tree $c/tree && echo "$c same"
done
tar -tvf tree.tar.gzip --numeric-owner | sort | tail -n 20
cp -a tree copy; diff -r tree copy && echo "copy same"
tar -cf - -C tree . | (mkdir piped; tar -xpf - -C piped); diff -r tree piped && echo "piped same"
find copy -type f -size +1k -exec sha256sum {} + | sort
find copy -type f -newer tree.tar.gzip | wc -l
stat -c '%n %a %s %h' copy/*/*/* | sort | head -n 20
cp -al copy linked; stat -c %h linked/d0/e0/f0
mv linked/d1 linked/moved; rm -rf linked/d2; ls -R linked | sort | sha256sum
echo x >> copy/d0/e0/f0; diff -rq tree copy || echo "differ $?"
touch -d @1500000000 copy/d0; ls -ld --time-style=+%s copy/d0 | awk '{print $6}'
chmod -R go-rwx copy; find copy -perm /077 ! -type l | wc -l
du -sb tree | cut -f1
dd if=tree.tar.gzip of=part bs=100 skip=3 count=20 status=none; wc -c < part
