//! What memory management needs of the machine: guest-physical memory, invalidation, and file contents.
//!
//! At run time that is the vCPU and the outside ([`Cx`]); while an image is being built it is a set
//! of pages that the launch will place; in tests it is a model.

use sevlab_arch::{Gpa, PAGE_SIZE, Spa, Va};
use sevlab_cpu::{Access, Stop, Vcpu};
use sevlab_memctl::Domain;

use crate::kernel::error::{Errno, Error};
use crate::kernel::outside::{HostCall, Outside, WindowCall};

/// Guest-physical memory in the guest's own key domain, and what goes with it.
pub trait Hw {
    /// Reads guest-physical memory inside one page.
    ///
    /// # Errors
    /// The memory controller or the nested tables refuse.
    fn read(&mut self, gpa: Gpa, out: &mut [u8]) -> Result<(), Error>;
    /// Writes guest-physical memory inside one page.
    ///
    /// # Errors
    /// As [`Hw::read`].
    fn write(&mut self, gpa: Gpa, data: &[u8]) -> Result<(), Error>;
    /// Fills a page with zeroes.
    ///
    /// # Errors
    /// As [`Hw::read`].
    fn zero(&mut self, gpa: Gpa) -> Result<(), Error>;
    /// Makes frames usable before their first use.
    ///
    /// # Errors
    /// As [`Outside::accept`].
    fn accept(&mut self, gpa: Gpa, pages: u64) -> Result<(), Error>;
    /// Makes pages shared with the hypervisor, or private again. Their content is void then.
    ///
    /// # Errors
    /// As [`Outside::share`].
    fn share(&mut self, gpa: Gpa, pages: u64, shared: bool) -> Result<(), Error>;
    /// [`Hw::read`] of a shared page.
    ///
    /// # Errors
    /// As [`Hw::read`].
    fn read_shared(&mut self, gpa: Gpa, out: &mut [u8]) -> Result<(), Error>;
    /// [`Hw::write`] to a shared page.
    ///
    /// # Errors
    /// As [`Hw::read`].
    fn write_shared(&mut self, gpa: Gpa, data: &[u8]) -> Result<(), Error>;
    /// Forgets the translation of a page. Others are out of guest code, unless nobody can have used it.
    fn invalidate(&mut self, va: Va);
    /// Forgets the translation of a page that is older than its entry, which has only gained rights. Others may be in guest code.
    fn renew(&mut self, va: Va) {
        self.invalidate(va);
    }
    /// Forgets the translations of a range, and maybe more.
    fn flush(&mut self, start: Va, end: Va);
    /// Forgets code decoded or translated from a range.
    fn drop_code(&mut self, start: Va, end: Va);
    /// Reads a file of the guest kernel's at `off`, until `out` is full or the file ends.
    ///
    /// # Errors
    /// The outside failed; the inner error is the host's errno.
    fn pread(&mut self, fd: i32, off: u64, out: &mut [u8]) -> Result<Result<usize, Errno>, Error>;
    /// Size of a file of the guest kernel's.
    ///
    /// # Errors
    /// As [`Hw::pread`].
    fn file_size(&mut self, fd: i32) -> Result<u64, Error>;
    /// Closes a file of the guest kernel's.
    ///
    /// # Errors
    /// As [`Hw::pread`].
    fn close(&mut self, fd: i32) -> Result<(), Error>;
    /// Changes what the file window shows.
    ///
    /// # Errors
    /// As [`Hw::pread`].
    fn window(&mut self, call: &WindowCall) -> Result<Result<u64, Errno>, Error>;

    /// The instruction that runs, if one does.
    fn rip(&self) -> Option<u64> {
        None
    }
    /// Most pages that a fault brings in where faults follow each other, a power of two.
    fn around(&self) -> u64 {
        32
    }
    /// Has the other vCPUs leave guest code, because page-table entries go or lose rights. False: there is
    /// nothing to undo.
    fn stop_others(&mut self) -> bool {
        false
    }
    /// Undoes [`Hw::stop_others`].
    fn let_others_go(&mut self) {}
    /// A host system call of the guest kernel's own, with `data` at the start of the bounce area. No
    /// machine, no host: `-ENOSYS`.
    ///
    /// # Errors
    /// The outside failed.
    fn host_with(&mut self, _data: &[u8], _nr: i64, _args: [u64; 6]) -> Result<i64, Error> {
        Ok(Errno::ENOSYS.ret())
    }
    /// Bytes of the bounce area.
    ///
    /// # Errors
    /// The outside failed.
    fn bounced(&mut self, _at: usize, _out: &mut [u8]) -> Result<(), Error> {
        Ok(())
    }

    /// Reads a page-table entry.
    ///
    /// # Errors
    /// As [`Hw::read`].
    fn read_u64(&mut self, gpa: Gpa) -> Result<u64, Error> {
        let mut b = [0; 8];
        self.read(gpa, &mut b)?;
        Ok(u64::from_le_bytes(b))
    }
    /// Writes a page-table entry.
    ///
    /// # Errors
    /// As [`Hw::read`].
    fn write_u64(&mut self, gpa: Gpa, value: u64) -> Result<(), Error> {
        self.write(gpa, &value.to_le_bytes())
    }
}

/// The machine at run time.
pub struct Cx<'a> {
    /// The vCPU.
    pub vcpu: &'a mut Vcpu,
    /// The way out.
    pub out: &'a mut dyn Outside,
}

impl Cx<'_> {
    fn spa(&mut self, gpa: Gpa, private: bool, write: bool) -> Result<(Domain, Spa), Error> {
        let domain = self.vcpu.domain(private);
        let access = if write { Access::Write } else { Access::Read };
        for _ in 0..3 {
            match self.vcpu.gpa_to_spa(gpa, private, access) {
                Ok(spa) => return Ok((domain, spa)),
                Err(Stop::NestedFault { gpa, error }) => {
                    self.out.nested_fault(self.vcpu, gpa, error)?;
                }
                Err(Stop::Host(e)) => return Err(e.into()),
                Err(stop) => {
                    return Err(Error::UnexpectedStop {
                        during: "accessing guest-physical memory",
                        stop: format!("{stop:?}"),
                    });
                }
            }
        }
        Err(Error::NotMapped { gpa, error: 0 })
    }

    fn call(&mut self, nr: i64, args: [u64; 6]) -> Result<i64, Error> {
        self.out.host_call(self.vcpu, &HostCall { nr, args })
    }
}

/// The host's result as a count of at most `max`.
fn count(ret: i64, max: usize, what: &str) -> Result<Result<usize, Errno>, Error> {
    match usize::try_from(ret) {
        Ok(n) if n <= max => Ok(Ok(n)),
        Ok(n) => Err(Error::Protocol {
            what: format!("{what} of {max} bytes returned {n}"),
        }),
        Err(_) => Ok(Err(Errno(ret.unsigned_abs() as i32))),
    }
}

impl Hw for Cx<'_> {
    fn read(&mut self, gpa: Gpa, out: &mut [u8]) -> Result<(), Error> {
        let (domain, spa) = self.spa(gpa, true, false)?;
        Ok(self.vcpu.mem.read(domain, spa, out)?)
    }
    fn write(&mut self, gpa: Gpa, data: &[u8]) -> Result<(), Error> {
        let (domain, spa) = self.spa(gpa, true, true)?;
        Ok(self.vcpu.mem.write(domain, spa, data)?)
    }
    fn zero(&mut self, gpa: Gpa) -> Result<(), Error> {
        let (domain, spa) = self.spa(gpa.page(), true, true)?;
        Ok(self.vcpu.mem.zero_page(domain, spa)?)
    }
    fn accept(&mut self, gpa: Gpa, pages: u64) -> Result<(), Error> {
        self.out.accept(self.vcpu, gpa, pages)
    }
    fn share(&mut self, gpa: Gpa, pages: u64, shared: bool) -> Result<(), Error> {
        self.out.share(self.vcpu, gpa, pages, shared)
    }
    fn read_shared(&mut self, gpa: Gpa, out: &mut [u8]) -> Result<(), Error> {
        let (domain, spa) = self.spa(gpa, false, false)?;
        Ok(self.vcpu.mem.read(domain, spa, out)?)
    }
    fn write_shared(&mut self, gpa: Gpa, data: &[u8]) -> Result<(), Error> {
        let (domain, spa) = self.spa(gpa, false, true)?;
        Ok(self.vcpu.mem.write(domain, spa, data)?)
    }
    fn invalidate(&mut self, va: Va) {
        self.vcpu.shoot_down(va, va.plus(PAGE_SIZE), true);
    }
    fn renew(&mut self, va: Va) {
        self.vcpu.renew(va, va.plus(PAGE_SIZE), true);
    }
    fn flush(&mut self, start: Va, end: Va) {
        self.vcpu.flush_range(start, end);
    }
    fn drop_code(&mut self, start: Va, end: Va) {
        self.vcpu.drop_code_everywhere(start, end);
    }
    fn rip(&self) -> Option<u64> {
        Some(self.vcpu.state.rip)
    }
    fn around(&self) -> u64 {
        // With a view, the host has a huge page for what is opened at once.
        if self.vcpu.mem.view().is_some() {
            512
        } else {
            32
        }
    }
    fn stop_others(&mut self) -> bool {
        self.vcpu.begin_exclusive()
    }
    fn let_others_go(&mut self) {
        self.vcpu.end_exclusive();
    }
    fn host_with(&mut self, data: &[u8], nr: i64, args: [u64; 6]) -> Result<i64, Error> {
        self.out.bounce_write(self.vcpu, 0, data)?;
        self.call(nr, args)
    }
    fn bounced(&mut self, at: usize, out: &mut [u8]) -> Result<(), Error> {
        self.out.bounce_read(self.vcpu, at, out)
    }
    fn pread(&mut self, fd: i32, off: u64, out: &mut [u8]) -> Result<Result<usize, Errno>, Error> {
        let mut done = 0;
        while done < out.len() {
            let (at, room) = (self.out.bounce_len(), self.out.pager_len());
            let n = (out.len() - done).min(room);
            let args = [fd as u64, at as u64, n as u64, off + done as u64, 0, 0];
            let ret = self.call(17, args)?;
            match count(ret, n, "pread64")? {
                Ok(0) => break,
                Ok(got) => {
                    self.out
                        .bounce_read(self.vcpu, at, &mut out[done..done + got])?;
                    done += got;
                }
                Err(Errno::EINTR) => {}
                Err(e) => return Ok(Err(e)),
            }
        }
        Ok(Ok(done))
    }
    fn file_size(&mut self, fd: i32) -> Result<u64, Error> {
        let at = self.out.bounce_len();
        if self.call(5, [fd as u64, at as u64, 0, 0, 0, 0])? != 0 {
            return Ok(0);
        }
        let mut size = [0; 8];
        self.out.bounce_read(self.vcpu, at + 48, &mut size)?;
        Ok(u64::from_le_bytes(size))
    }
    fn close(&mut self, fd: i32) -> Result<(), Error> {
        self.call(3, [fd as u64, 0, 0, 0, 0, 0]).map(drop)
    }
    fn window(&mut self, call: &WindowCall) -> Result<Result<u64, Errno>, Error> {
        let block = call.encode();
        let ret = self.call(block.nr, block.args)?;
        Ok(u64::try_from(ret).map_err(|_| Errno(ret.unsigned_abs() as i32)))
    }
}

/// Copies into guest-physical memory across page borders of contiguous frames.
///
/// # Errors
/// As [`Hw::write`].
pub fn write_run(hw: &mut dyn Hw, gpa: Gpa, data: &[u8]) -> Result<(), Error> {
    let mut done = 0;
    while done < data.len() {
        let at = gpa.plus(done as u64);
        let n = ((PAGE_SIZE - at.offset()) as usize).min(data.len() - done);
        hw.write(at, &data[done..done + n])?;
        done += n;
    }
    Ok(())
}
