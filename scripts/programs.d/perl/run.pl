use strict;
use warnings;
use POSIX qw(:sys_wait_h :signal_h pause);
use Socket;
use Time::HiRes qw(sleep ualarm);
$ENV{PATH} = '/usr/bin:/bin';
delete @ENV{qw(IFS CDPATH ENV BASH_ENV)};
$| = 1;
my %pids;
for my $i (0 .. 4) {
    my $pid = fork // die "fork: $!";
    exit $i * 3 if !$pid;
    $pids{$pid} = $i;
}
my %got;
while ((my $pid = wait) > 0) { $got{$pids{$pid}} = $? >> 8 }
print join(' ', map {"$_=$got{$_}"} sort keys %got), "\n";
open my $from, '-|', 'seq', '1', '100' or die;
my $sum = 0;
$sum += $_ while <$from>;
close $from;
print "sum $sum, status $?\n";
open my $to, '|-', 'sort', '-rn' or die;
print $to "$_\n" for 3, 10, 2;
close $to;
my $out = `echo to stdout; exit 6`;
print "backticks $out", $? >> 8, "\n";
system('/bin/sh', '-c', 'kill -TERM $$');
print 'killed ', $? & 127, "\n";
my $usr = 0;
$SIG{USR1} = sub { $usr++ };
for (1 .. 50) { kill USR1 => $$ }
print "signals $usr\n";
my $late = eval { local $SIG{ALRM} = sub { die "alarm\n" }; alarm 1; sleep 30; 1 } ? 'no' : $@;
print "late: $late";
my $ticks = 0;
local $SIG{ALRM} = sub { $ticks++ };
ualarm(2000, 2000);
my $x = 0;
while ($ticks < 20) { $x++ }
ualarm(0);
print "ticks\n";
local $SIG{CHLD} = sub { 1 while waitpid(-1, WNOHANG) > 0 };
socketpair(my $a, my $b, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die;
$a->autoflush(1);
$b->autoflush(1);
my $pid = fork // die;
if (!$pid) {
    close $a;
    while (<$b>) { print $b scalar reverse($_ =~ s/\n//r), "\n" }
    exit 0;
}
close $b;
for my $word (qw(one two three)) { print $a "$word\n"; print scalar <$a> }
close $a;
sleep 0.1;
my $arg = eval { open my $f, '>', substr($0, 0, 0) . 'file' or die; 1 } ? 'opened' : 'refused';
print "taint: $arg\n";
my $set = POSIX::SigSet->new(SIGUSR1);
sigprocmask(SIG_BLOCK, $set);
kill USR1 => $$;
my $before = $usr;
my $pending = POSIX::SigSet->new;
sigpending($pending);
sigprocmask(SIG_UNBLOCK, $set);
print 'pending ', $pending->ismember(SIGUSR1), ' then ', $usr - $before, "\n";
my $h = open(my $child, '-|') // die;
if (!$h) { print "from the forked open\n"; exit 2 }
print <$child>;
{ local $SIG{CHLD} = 'DEFAULT'; close $child; }
exec '/bin/sh', '-c', 'echo after exec; exit 8';
