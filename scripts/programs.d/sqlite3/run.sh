set -e
sqlite3 a.db <<'END'
create table t(a integer primary key, b text, c real);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000)
insert into t select i, hex(i * 7919 % 10007), i / 7.0 from n;
create index tb on t(b);
analyze;
select count(*), sum(c), min(b), max(b) from t;
explain query plan select * from t where b = '31';
select b, count(*) from t group by b having count(*) > 2 order by b limit 3;
begin; delete from t where a % 2; rollback;
begin; update t set c = c * 2 where a < 100; commit;
select printf('%.6f', total(c)) from t;
select json_group_array(a) from (select a from t where a < 6);
vacuum;
pragma integrity_check;
.mode csv
.output out.csv
select * from t where a <= 50;
.output
.mode column
select * from t limit 2;
END
sqlite3 b.db '.mode csv' '.import out.csv t' 'select count(*) from t'
sqlite3 a.db .dump | sha256sum
# Two at once on one file.
sqlite3 c.db 'pragma journal_mode=wal; create table t(x);'
for w in 1 2; do
    (for i in $(seq 10); do echo "pragma busy_timeout=60000; insert into t values($w);" | sqlite3 c.db > /dev/null; done) &
done
wait
sqlite3 c.db 'select x, count(*) from t group by x; pragma wal_checkpoint(truncate);'
rm -f c.db*
sqlite3 a.db 'select * from nothing' || echo "status $?"
