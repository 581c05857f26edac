set -e
rsync -aH tree/ copy/
diff -r tree copy && echo same
echo more >> tree/d0/e0/f0; rm -r tree/d1; mkdir tree/new; echo x > tree/new/file
rsync -aH --delete --itemize-changes tree/ copy/ | sort
diff -r tree copy && echo same
rsync -a --checksum --exclude='*.link' --compress tree/ third/
find third | sort | sha256sum
rsync -an --stats tree/ copy/ | grep -E 'Number of (created|deleted|regular)'
rsync -a /does/not/exist copy/ 2> /dev/null || echo "status $?"
