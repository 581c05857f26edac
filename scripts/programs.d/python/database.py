"""sqlite3 from several threads and processes on one file."""
import hashlib
import os
import sqlite3
import sys
import threading

path = "data.db"
db = sqlite3.connect(path)
print(db.execute("pragma journal_mode=wal").fetchone())
db.executescript("create table t(id integer primary key, who text, n integer, x real); create index i on t(who, n);")
db.executemany("insert into t(who, n, x) values(?, ?, ?)", [(f"main{i % 7}", i, i / 3) for i in range(5000)])
db.commit()
print(db.execute("select who, count(*), sum(n), avg(x) from t group by who order by who").fetchall())


def insert(who):
    own = sqlite3.connect(path, timeout=120)
    for i in range(20):
        with own:
            own.execute("begin immediate")
            own.executemany("insert into t(who, n) values(?, ?)", [(who, i * 10 + k) for k in range(10)])
    own.close()


ts = [threading.Thread(target=insert, args=(f"thread{i}",)) for i in range(4)]
[t.start() for t in ts]
[t.join() for t in ts]
sys.stdout.flush()
pids = []
for i in range(3):
    pid = os.fork()
    if pid == 0:
        insert(f"process{i}")
        os._exit(i)
    pids.append(pid)
print([os.waitpid(p, 0)[1] >> 8 for p in pids])
print(db.execute("select who, count(*), sum(n) from t where who not like 'main%' group by who order by who").fetchall())
with db:
    db.execute("delete from t where n % 3 = 0")
    db.execute("update t set x = n * 1.5 where who >= 'p'")
try:
    with db:
        db.execute("insert into t(who) values('rolled back')")
        db.execute("insert into t(id) values(1)")
        db.execute("insert into t(id) values(1)")
except sqlite3.IntegrityError as e:
    print(e)
db.create_function("mix", 2, lambda a, b: hashlib.md5(f"{a}{b}".encode()).hexdigest())
print(db.execute("select max(mix(who, n)) from t").fetchone(), db.execute("pragma integrity_check").fetchone())
dump = "\n".join(db.iterdump()).replace("'", "")
print(db.execute("select count(*), sum(n), total(x) from t").fetchone(), len(dump) > 10_000)
db.execute("pragma wal_checkpoint(truncate)")
db.close()
os.remove(path)
