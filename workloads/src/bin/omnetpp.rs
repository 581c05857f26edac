//! A network of switches and hosts, by discrete events. Follows 520.omnetpp_r.
//!
//! As there: modules behind virtual calls exchange messages, each a heap object with a name and parameters of its own, through a heap of
//! future events; queues, tables, statistics by module. Its behaviour: pointer chasing over a heap that grows to some
//! hundred MiB, many small allocations, unpredictable branches and indirect calls.
//!
//! What differs: a network of our own (store-and-forward switches on a random graph) where SPEC has a model of 10-gigabit Ethernet;
//! modules are compiled in, not configured.

use std::collections::VecDeque;
use std::process::ExitCode;

use sevlab_workloads::guest::{Guest, Param, Random, Sum, Values, ln};

const GUEST: Guest = Guest {
    name: "omnetpp",
    about: "Simulates a network of switches and hosts by discrete events.",
    params: &[
        Param {
            name: "switches",
            what: "switches; eight hosts each",
            values: [16, 150, 3000],
            limits: (4, 20_000),
        },
        Param {
            name: "micros",
            what: "microseconds to simulate",
            values: [200, 200, 22],
            limits: (1, 1 << 30),
        },
        Param {
            name: "seed",
            what: "seed of the network and its traffic",
            values: [1, 1, 1],
            limits: (0, u64::MAX),
        },
    ],
};

const HOSTS: usize = 8;
/// Of each host's histogram.
const BINS: usize = 1024;
/// Packets that a port's queue holds.
const QUEUE: usize = 40;

/// A message in flight or in a queue.
struct Message {
    name: String,
    from: u32,
    to: u32,
    sent: u64,
    hops: u32,
    payload: Vec<u8>,
}

enum Kind {
    /// A message arrives.
    Arrive(Box<Message>),
    /// A port has sent what it was sending.
    Free(u32),
    /// A host sends its next message.
    Send,
}

/// Something that happens to a module at a time.
struct Event {
    time: u64,
    /// Ties are broken by the order of scheduling.
    order: u64,
    module: u32,
    kind: Kind,
}

/// Future events, the next one on top: a binary heap of pointers.
#[derive(Default)]
struct Future {
    #[expect(clippy::vec_box)] // as OMNeT++ has it: events move in the heap by their pointers
    heap: Vec<Box<Event>>,
    count: u64,
}

impl Future {
    fn before(a: &Event, b: &Event) -> bool {
        (a.time, a.order) < (b.time, b.order)
    }

    fn push(&mut self, time: u64, module: u32, kind: Kind) {
        self.count += 1;
        let order = self.count;
        self.heap.push(Box::new(Event {
            time,
            order,
            module,
            kind,
        }));
        let mut at = self.heap.len() - 1;
        while at > 0 && Self::before(&self.heap[at], &self.heap[(at - 1) / 2]) {
            self.heap.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
    }

    fn pop(&mut self) -> Option<Box<Event>> {
        if self.heap.is_empty() {
            return None;
        }
        let first = self.heap.swap_remove(0);
        let mut at = 0;
        loop {
            let mut least = at;
            for child in [2 * at + 1, 2 * at + 2] {
                if child < self.heap.len() && Self::before(&self.heap[child], &self.heap[least]) {
                    least = child;
                }
            }
            if least == at {
                return Some(first);
            }
            self.heap.swap(at, least);
            at = least;
        }
    }
}

/// What a module may use.
struct World {
    now: u64,
    future: Future,
    random: Random,
    sent: u64,
    received: u64,
    dropped: u64,
    latency: u64,
    hops: u64,
    wrong: u64,
    sum: Sum,
}

trait Module {
    fn handle(&mut self, kind: Kind, world: &mut World);
    /// Messages that it holds.
    fn held(&self) -> u64;
    /// Messages in its statistics.
    fn counted(&self) -> u64;
}

/// Sends messages to random hosts, and takes those for it.
struct Host {
    number: u32,
    hosts: u32,
    switch: u32,
    /// Messages by latency, in steps of 20 ns, as OMNeT++ keeps them for each module.
    histogram: Vec<u32>,
    received: Vec<(u32, u64)>,
}

fn payload(from: u32, to: u32, length: usize) -> Vec<u8> {
    (0..length as u32)
        .map(|i| (from.wrapping_mul(31) ^ to.wrapping_mul(17) ^ i) as u8)
        .collect()
}

impl Module for Host {
    fn handle(&mut self, kind: Kind, world: &mut World) {
        match kind {
            Kind::Send => {
                let to = world.random.below(u64::from(self.hosts)) as u32;
                let length = 64 + world.random.below(400) as usize;
                world.sent += 1;
                let message = Box::new(Message {
                    name: format!("packet-{}-{to}", self.number),
                    from: self.number,
                    to,
                    sent: world.now,
                    hops: 0,
                    payload: payload(self.number, to, length),
                });
                world.future.push(
                    world.now + 100 + length as u64,
                    self.switch,
                    Kind::Arrive(message),
                );
                // Exponential, 4 us on average.
                let wait = (-ln(1.0 - world.random.unit()) * 4000.0) as u64 + 1;
                world.future.push(world.now + wait, self.number, Kind::Send);
            }
            Kind::Arrive(message) => {
                world.received += 1;
                world.latency += world.now - message.sent;
                world.hops += u64::from(message.hops);
                let right = payload(message.from, message.to, message.payload.len());
                world.wrong += u64::from(message.to != self.number || message.payload != right);
                world.sum.add_bytes(message.name.as_bytes());
                let bin = ((world.now - message.sent) / 20) as usize;
                self.histogram[bin.min(BINS - 1)] += 1;
                self.received.push((message.from, world.now));
            }
            Kind::Free(_) => {}
        }
    }

    fn held(&self) -> u64 {
        0
    }

    fn counted(&self) -> u64 {
        self.histogram.iter().map(|n| u64::from(*n)).sum()
    }
}

struct Port {
    /// The module at the other end, and how far it is in ns.
    to: u32,
    delay: u64,
    busy: bool,
    queue: VecDeque<Box<Message>>,
}

/// Stores messages and forwards them toward their hosts.
struct Switch {
    number: u32,
    ports: Vec<Port>,
    /// The port toward each switch.
    route: Vec<u16>,
    first_switch: u32,
    drops: u64,
}

impl Switch {
    fn start(&mut self, port: usize, world: &mut World) {
        let this = self.number;
        let port_number = port as u32;
        let port = &mut self.ports[port];
        let Some(message) = port.queue.pop_front() else {
            port.busy = false;
            return;
        };
        port.busy = true;
        let busy = 20 + message.payload.len() as u64 / 2;
        world
            .future
            .push(world.now + busy, this, Kind::Free(port_number));
        world.future.push(
            world.now + busy + port.delay,
            port.to,
            Kind::Arrive(message),
        );
    }
}

impl Module for Switch {
    fn handle(&mut self, kind: Kind, world: &mut World) {
        match kind {
            Kind::Arrive(mut message) => {
                message.hops += 1;
                let switch = message.to / HOSTS as u32;
                let port = if switch + self.first_switch == self.number {
                    message.to as usize % HOSTS
                } else {
                    usize::from(self.route[switch as usize])
                };
                if self.ports[port].queue.len() >= QUEUE {
                    self.drops += 1;
                    world.dropped += 1;
                    return;
                }
                self.ports[port].queue.push_back(message);
                if !self.ports[port].busy {
                    self.start(port, world);
                }
            }
            Kind::Free(port) => self.start(port as usize, world),
            Kind::Send => {}
        }
    }

    fn held(&self) -> u64 {
        self.ports.iter().map(|p| p.queue.len() as u64).sum()
    }

    fn counted(&self) -> u64 {
        0
    }
}

/// Hosts first, then switches: a ring with random chords, and routes by breadth-first search.
fn build(switches: usize, random: &mut Random) -> Vec<Box<dyn Module>> {
    let hosts = switches * HOSTS;
    let mut links: Vec<Vec<usize>> = vec![Vec::new(); switches];
    for s in 0..switches {
        links[s].push((s + 1) % switches);
        links[(s + 1) % switches].push(s);
        for _ in 0..2 {
            let other = random.below(switches as u64) as usize;
            if other != s && !links[s].contains(&other) {
                links[s].push(other);
                links[other].push(s);
            }
        }
    }
    let mut modules: Vec<Box<dyn Module>> = Vec::new();
    for h in 0..hosts {
        modules.push(Box::new(Host {
            number: h as u32,
            hosts: hosts as u32,
            switch: (hosts + h / HOSTS) as u32,
            histogram: vec![0; BINS],
            received: Vec::new(),
        }));
    }
    for s in 0..switches {
        let port = |to: usize, delay| Port {
            to: to as u32,
            delay,
            busy: false,
            queue: VecDeque::new(),
        };
        let mut ports: Vec<Port> = (0..HOSTS).map(|h| port(s * HOSTS + h, 50)).collect();
        ports.extend(
            links[s]
                .iter()
                .map(|to| port(hosts + to, 200 + random.below(600))),
        );
        let mut route = vec![u16::MAX; switches];
        let mut work: VecDeque<usize> = VecDeque::new();
        for (n, to) in links[s].iter().enumerate() {
            route[*to] = (HOSTS + n) as u16;
            work.push_back(*to);
        }
        while let Some(at) = work.pop_front() {
            for to in &links[at] {
                if route[*to] == u16::MAX && *to != s {
                    route[*to] = route[at];
                    work.push_back(*to);
                }
            }
        }
        modules.push(Box::new(Switch {
            number: (hosts + s) as u32,
            ports,
            route,
            first_switch: hosts as u32,
            drops: 0,
        }));
    }
    modules
}

fn main() -> ExitCode {
    GUEST.main(run)
}

fn run(values: &Values) -> Result<String, String> {
    let mut world = World {
        now: 0,
        future: Future::default(),
        random: Random::new(values.get("seed")),
        sent: 0,
        received: 0,
        dropped: 0,
        latency: 0,
        hops: 0,
        wrong: 0,
        sum: Sum::default(),
    };
    let switches = values.size("switches");
    let mut modules = build(switches, &mut world.random);
    for h in 0..switches * HOSTS {
        let at = world.random.below(4000);
        world.future.push(at, h as u32, Kind::Send);
    }
    let end = values.get("micros") * 1000;
    let mut events = 0u64;
    while let Some(event) = world.future.pop() {
        if event.time > end {
            world.future.heap.push(event);
            break;
        }
        if event.time < world.now {
            return Err(format!("an event of {} comes at {}", event.time, world.now));
        }
        world.now = event.time;
        events += 1;
        modules[event.module as usize].handle(event.kind, &mut world);
    }
    let flying = world
        .future
        .heap
        .iter()
        .filter(|e| matches!(e.kind, Kind::Arrive(_)))
        .count() as u64;
    let queued: u64 = modules.iter().map(|m| m.held()).sum();
    let counted: u64 = modules.iter().map(|m| m.counted()).sum();
    if world.sent != world.received + world.dropped + flying + queued
        || world.wrong > 0
        || counted != world.received
    {
        return Err(format!(
            "{} sent, {} received ({} wrong), {} dropped, {flying} in flight, {queued} in queues",
            world.sent, world.received, world.wrong, world.dropped
        ));
    }
    Ok(format!(
        "{events} events\n{} sent, {} received, {} dropped\nlatency {:.3} us, {:.3} hops\nchecksum {}",
        world.sent,
        world.received,
        world.dropped,
        world.latency as f64 / world.received.max(1) as f64 / 1000.0,
        world.hops as f64 / world.received.max(1) as f64,
        world.sum
    ))
}
