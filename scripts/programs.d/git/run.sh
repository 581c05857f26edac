set -e
export GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@example.com GIT_COMMITTER_NAME=C GIT_COMMITTER_EMAIL=c@example.com
export GIT_AUTHOR_DATE='1600000000 +0000' GIT_COMMITTER_DATE='1600000100 +0000' GIT_CONFIG_NOSYSTEM=1
git init -q -b main repo
cd repo
git config gc.auto 0
git config core.fsmonitor false
git config pack.threads 2
for i in $(seq 1 40); do seq $i $((i * 20)) > f$i; done
mkdir -p sub/deeper; cp f1 sub/deeper/copy; ln -s ../f2 sub/link; chmod +x f3
git add .
git commit -q -m 'the first'
git checkout -q -b side
sed -i 's/^7$/seven/' f5; git commit -qam 'on the side'
git checkout -q main
sed -i 's/^90$/ninety/' f5; git rm -q f9; git commit -qam 'on main'
git merge -q -m 'merged' side
git checkout -q -b clash HEAD~1
sed -i 's/^7$/SEVEN/' f5; git commit -qam 'a clash'
git merge side || echo "merge: $?"
git status --short
git checkout -q --theirs f5; git add f5; git commit -qm 'resolved'
git log --graph --format='%h %s %ad' --date=unix --all
git diff --stat main clash
git tag -a -m 'a tag' v1 main
git blame -s f5 | tail -n 3
git grep -c seven
git stash list; echo more >> f1; git stash -q; git stash pop -q; git checkout -q f1
git rebase -q main clash~1 2>&1 | tail -n 1; git rebase --abort 2> /dev/null; git checkout -q main
cd ..
git clone -q repo copy
git clone -q --bare --no-local repo bare.git
git -C copy fsck --strict
git -C copy log --oneline | wc -l
git -C copy checkout -q -b pushed; echo x > copy/new; git -C copy add new; git -C copy commit -qm new
git -C copy push -q ../bare.git pushed
git -C bare.git gc -q --aggressive --prune=now
git -C repo repack -q -a -d
git -C bare.git rev-parse pushed
git -C bare.git count-objects -v | grep -v size
git -C repo archive main | sha256sum
git -C repo bundle create -q ../b.bundle main
git -C copy bundle verify -q ../b.bundle
git -C repo cat-file --batch-check --batch-all-objects | sha256sum
find . -name '*.sample' -delete
rm -rf repo/.git/logs copy/.git/logs
