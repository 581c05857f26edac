//! The prefetchers: which lines of a page a demand miss brings beside its own.

use sevlab_memctl::model::Prefetch;

/// Pages that the stride prefetcher follows at a time.
const STREAMS: usize = 16;
/// Lines of a page.
const PAGE_LINES: u64 = 64;

#[derive(Clone, Copy, Debug)]
struct Stream {
    page: u64,
    last: u64,
    stride: i64,
}

/// The prefetchers of a core.
#[derive(Clone, Debug)]
pub struct Prefetcher {
    config: Prefetch,
    /// A page is followed in the place of its number modulo [`STREAMS`].
    streams: Vec<Option<Stream>>,
}

impl Prefetcher {
    /// They have seen nothing yet.
    #[must_use]
    pub fn new(config: &Prefetch) -> Self {
        Self {
            config: config.clone(),
            streams: vec![None; STREAMS],
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
            let place = &mut self.streams[(page % STREAMS as u64) as usize];
            match place {
                Some(s) if s.page == page => {
                    let distance = line as i64 - s.last as i64;
                    if distance != 0 && distance == s.stride {
                        for k in 1..=i64::from(self.config.degree) {
                            wanted.push((line as i64 + distance * k) as u64);
                        }
                    }
                    if distance != 0 {
                        s.stride = distance;
                        s.last = line;
                    }
                }
                _ => {
                    *place = Some(Stream {
                        page,
                        last: line,
                        stride: 0,
                    });
                }
            }
        }
        wanted.retain(|l| l / PAGE_LINES == page);
        wanted
    }
}
