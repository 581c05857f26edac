//! Dumps of DRAM: ciphertext where pages are private. Pages that nothing ever wrote are not touched, so that a dump of a large,
//! mostly empty machine takes no host memory.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

use sevlab_arch::{PAGE_SIZE, Spa};

use crate::ctl::MemCtl;

/// Pages that go through the buffer at a time.
const CHUNK: u64 = 64;

impl MemCtl {
    /// Writes all of DRAM as a bus probe sees it, [`MemCtl::size`] bytes. Resident plaintext is written back first.
    ///
    /// # Errors
    /// Those of `w`.
    pub fn dump(&self, w: &mut dyn Write) -> io::Result<()> {
        let zeroes = vec![0; (CHUNK * PAGE_SIZE) as usize];
        self.for_runs(|run| match run {
            Run::Data(d) => w.write_all(d),
            Run::Zeroes(mut n) => {
                while n > 0 {
                    let now = n.min(zeroes.len() as u64);
                    w.write_all(&zeroes[..now as usize])?;
                    n -= now;
                }
                Ok(())
            }
        })
    }

    /// [`MemCtl::dump`] from the start of a file, with holes where nothing was ever written. The file's old content goes.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn dump_to_file(&self, f: &mut File) -> io::Result<()> {
        f.set_len(0)?;
        f.set_len(self.size())?;
        f.seek(SeekFrom::Start(0))?;
        self.for_runs(|run| match run {
            Run::Data(d) => f.write_all(d),
            Run::Zeroes(n) => f.seek(SeekFrom::Current(n as i64)).map(drop),
        })
    }

    fn for_runs(&self, mut emit: impl FnMut(Run<'_>) -> io::Result<()>) -> io::Result<()> {
        self.write_back_all().map_err(io::Error::other)?;
        let mut buf = vec![0; (CHUNK * PAGE_SIZE) as usize];
        let end = self.size() / PAGE_SIZE;
        let page = |pfn: u64| Spa(pfn * PAGE_SIZE);
        let mut at = 0;
        while at < end {
            let data = self.dram_may_be_nonzero(page(at));
            let most = if data { at + CHUNK } else { end }.min(end);
            let mut next = at + 1;
            while next < most && self.dram_may_be_nonzero(page(next)) == data {
                next += 1;
            }
            let bytes = (next - at) * PAGE_SIZE;
            if data {
                let buf = &mut buf[..bytes as usize];
                self.bus_read(page(at), buf);
                emit(Run::Data(buf))?;
            } else {
                emit(Run::Zeroes(bytes))?;
            }
            at = next;
        }
        Ok(())
    }
}

enum Run<'a> {
    Data(&'a [u8]),
    Zeroes(u64),
}
