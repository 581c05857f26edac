//! The prefetchers: which lines of a page a demand miss brings beside its own.

use sevlab_memctl::model::Prefetch;

/// Streams that the stride prefetcher follows.
const STREAMS: usize = 16;
/// Lines of a page.
const PAGE_LINES: u64 = 64;

#[derive(Clone, Debug)]
struct Stream {
    page: u64,
    last: u64,
    stride: i64,
    used: u64,
}

/// The prefetchers of a core.
#[derive(Clone, Debug)]
pub struct Prefetcher {
    config: Prefetch,
    streams: Vec<Stream>,
    misses: u64,
}

impl Prefetcher {
    /// They have seen nothing yet.
    #[must_use]
    pub fn new(config: &Prefetch) -> Self {
        Self {
            config: config.clone(),
            streams: Vec::new(),
            misses: 0,
        }
    }

    /// A data access missed the first level at this line. The lines to bring, in order.
    pub fn miss(&mut self, line: u64) -> Vec<u64> {
        let mut wanted = Vec::new();
        let page = line / PAGE_LINES;
        if self.config.next_line {
            wanted.push(line + 1);
        }
        if self.config.stride {
            self.misses += 1;
            let used = self.misses;
            match self.streams.iter_mut().find(|s| s.page == page) {
                Some(s) => {
                    s.used = used;
                    let distance = line as i64 - s.last as i64;
                    if distance != 0 && distance == s.stride {
                        for k in 1..=i64::from(self.config.degree) {
                            wanted.push((line as i64 + distance * k) as u64);
                        }
                    } else if distance != 0 {
                        s.stride = distance;
                    }
                    s.last = line;
                }
                None => {
                    if self.streams.len() == STREAMS {
                        let oldest = self.streams.iter().map(|s| s.used).min();
                        self.streams.retain(|s| Some(s.used) != oldest);
                    }
                    self.streams.push(Stream {
                        page,
                        last: line,
                        stride: 0,
                        used,
                    });
                }
            }
        }
        wanted.retain(|l| l / PAGE_LINES == page);
        wanted
    }
}
