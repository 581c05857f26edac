//! `sevlab run`: one guest from the command line to its end.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use sevlab_machine::kernel::syscall::strace;
use sevlab_machine::{
    CodeCache, CpuPreset, Engine, GuestEnd, Machine, MachineConfig, RunOutcome, cache_name,
    exit_like, mode_name,
};

use sevlab_machine::presets;
use sevlab_memctl::model::CoreModel;

use crate::args::{Cache, RunArgs, Switch};
use crate::check::Check;
use crate::failure::Failure;
use crate::jit_opt::{self, JitOpt};
use crate::output::Output;
use crate::{host, program};

/// Runs the guest and returns its exit status. Does not return if a signal killed the guest.
pub fn run(args: &RunArgs) -> Result<ExitCode, Failure> {
    if args.jit_opt.contains(&JitOpt::Help) {
        host::default_sigpipe();
        print!("{}", jit_opt::help());
        return Ok(ExitCode::SUCCESS);
    }
    let mut config = config(args)?;
    let check = match (&config.model, args.check) {
        (Some(model), true) => Some(Check::new(model)),
        _ => None,
    };
    config.watch = check.as_ref().map(Check::watch);
    let results = Results {
        check,
        stats: args.stats,
        report: args
            .report
            .as_deref()
            .map(|file| Output::new("--report", file))
            .transpose()?,
        dump: args
            .dump_dram
            .as_deref()
            .map(|file| Output::new("--dump-dram", file))
            .transpose()?,
    };
    if let Some(to) = &args.strace {
        trace(to.as_deref(), args.strace_only.as_deref())?;
    }
    let program = config.program.clone();
    let machine = Machine::new(config).map_err(|e| Failure::of_machine(e, &program))?;
    let mut stderr = host::own_stderr();
    let end = results.of(machine, &program, &mut stderr);
    let status = end.unwrap_or_else(|failure| {
        // Nobody is left to tell if stderr is gone.
        let _ = writeln!(stderr, "sevlab: {failure}");
        GuestEnd::Exited(failure.status().into())
    });
    match status {
        GuestEnd::Exited(status) => Ok(ExitCode::from(status as u8)),
        killed => exit_like(killed),
    }
}

/// Has the guest's system calls printed, to stderr if `to` is `None`.
fn trace(to: Option<&Path>, only: Option<&str>) -> Result<(), Failure> {
    let failed = |path: &Path, source| Failure::Output {
        option: "--strace",
        path: path.to_owned(),
        source,
    };
    let file = match to {
        None => host::out_of_reach(io::stderr()).map_err(|e| failed(Path::new("stderr"), e))?,
        Some(path) => File::create(path)
            .and_then(host::out_of_reach)
            .map_err(|e| failed(path, e))?,
    };
    strace::start(file, only).map_err(Failure::Usage)
}

/// What a run leaves behind besides what the guest did.
struct Results {
    check: Option<Check>,
    stats: bool,
    report: Option<Output>,
    dump: Option<Output>,
}

impl Results {
    /// Runs the machine and writes the results. The machine is gone afterwards, and its keys with it, unless the guest has exited: then so
    /// does this process, which takes the host less time than giving everything back piece by piece.
    fn of(
        &self,
        mut machine: Machine,
        program: &Path,
        stderr: &mut impl Write,
    ) -> Result<GuestEnd, Failure> {
        let outcome = machine.run().map_err(|e| Failure::of_machine(e, program))?;
        let differences = match (&self.check, &outcome.stats.simulation) {
            (Some(check), Some(simulation)) => check.differences(simulation),
            _ => String::new(),
        };
        if self.stats {
            // As above.
            let _ = stderr.write_all(stats(machine.config(), &outcome).as_bytes());
        }
        if let Some(output) = &self.report {
            let json = machine.report(&outcome).to_json();
            output.write(|file| writeln!(file, "{json}"))?;
        }
        if let Some(output) = &self.dump {
            output.write(|file| dump(&machine, file, output.is_regular()))?;
        }
        if !differences.is_empty() {
            return Err(Failure::Differs(differences));
        }
        if let GuestEnd::Exited(_) = outcome.exit {
            std::mem::forget(machine);
        }
        Ok(outcome.exit)
    }
}

fn dump(machine: &Machine, file: &mut File, holes: bool) -> io::Result<()> {
    if holes {
        machine.mem().dump_to_file(file)
    } else {
        machine.mem().dump(file)
    }
}

/// The counts with a headline that says what was counted.
fn stats(config: &MachineConfig, outcome: &RunOutcome) -> String {
    let words: Vec<OsString> = config.argv.clone();
    let command = words.join(OsStr::new(" "));
    let engine = match config.engine {
        Engine::Interpreter => "interpreter",
        Engine::Jit(_) => "translator",
    };
    let cache = match &config.model {
        Some(model) => format!("{} {}", cache_name(config.cache), model.name),
        None => cache_name(config.cache).to_owned(),
    };
    let how = match config.sev {
        sevlab_machine::SevMode::Off if config.model.is_some() => {
            format!("no encryption, cache {cache}, {engine}")
        }
        sevlab_machine::SevMode::Off => format!("no encryption, {engine}"),
        mode => format!(
            "{}, {}, cache {cache}, {engine}",
            mode_name(mode),
            config.cipher
        ),
    };
    format!(
        "\n sevlab run: '{}' ({how})\n\n{}\n",
        command.to_string_lossy(),
        outcome.stats
    )
}

fn config(args: &RunArgs) -> Result<MachineConfig, Failure> {
    if args.resident.is_some() && args.cache != Cache::Page {
        let why = match args.cache {
            Cache::Hierarchy => {
                "--resident limits what --cache page keeps; the model says what --cache hierarchy keeps"
            }
            _ => "--resident limits what --cache page keeps; with --cache none nothing is kept",
        };
        return Err(Failure::Usage(why.to_owned()));
    }
    let hierarchy = args.cache == Cache::Hierarchy;
    if !hierarchy && (args.model.is_some() || !args.set.is_empty()) {
        let why = "--model and --set have no effect without --cache hierarchy";
        return Err(Failure::Usage(why.to_owned()));
    }
    if !hierarchy && args.limit_instructions.is_some() {
        let why = "--limit-instructions has no effect without --cache hierarchy";
        return Err(Failure::Usage(why.to_owned()));
    }
    if args.check && (!hierarchy || args.jit == Switch::On) {
        let why = "--check compares an interpreted run: it needs --cache hierarchy and --jit off";
        return Err(Failure::Usage(why.to_owned()));
    }
    let loaded = match hierarchy {
        true => Some(model(args)?),
        false => None,
    };
    // So that a count does not depend on the host's processor.
    let cpu = args.cpu.unwrap_or_else(|| match &loaded {
        None => CpuPreset::Host,
        Some(loaded) => loaded
            .base()
            .and_then(|base| base.parse().ok())
            .unwrap_or(CpuPreset::EpycMilan),
    });
    let model = loaded.map(|loaded| Arc::new(loaded.model));
    if args.check
        && model
            .as_ref()
            .is_some_and(|m| m.core.model == CoreModel::Overlap)
    {
        let why = "--check knows core.model = \"simple\" only";
        return Err(Failure::Usage(why.to_owned()));
    }
    if args.jit == Switch::Off && !args.jit_opt.is_empty() {
        return Err(Failure::Usage(
            "--jit-opt has no effect with --jit off".to_owned(),
        ));
    }
    if !cpu.offers(args.sev.into()) {
        let name = cpu.name();
        return Err(Failure::Usage(format!(
            "--cpu {name} has no SEV-SNP: use epyc-milan or a later one, or --sev es"
        )));
    }
    let Some(name) = args.command.first() else {
        return Err(Failure::Usage("no PROGRAM was named".to_owned()));
    };
    let engine = match args.jit {
        Switch::On => {
            let mut options = JitOpt::apply(&args.jit_opt).map_err(Failure::Usage)?;
            options.cache = code_cache(args);
            Engine::Jit(options)
        }
        Switch::Off => Engine::Interpreter,
    };
    Ok(MachineConfig {
        sev: args.sev.into(),
        cipher: args.cipher,
        cpu,
        model,
        cache: args.cache.into(),
        memory: args.memory,
        resident: args.resident,
        keep_dram: args.dump_dram.is_some(),
        engine,
        seed: args.seed,
        instructions: args.limit_instructions,
        deterministic: args.deterministic,
        argv: args.command.clone(),
        envp: environment(),
        ..MachineConfig::new(program::find(name, env::var_os("PATH"))?)
    })
}

/// The code cache that the options, the environment or neither ask for. None: off, or there is no place for it.
fn code_cache(args: &RunArgs) -> Option<Arc<CodeCache>> {
    let asked = args.code_cache.clone();
    let asked = asked.or_else(|| Some(env::var_os("SEVLAB_CODE_CACHE")?.into()));
    let dir = match asked {
        Some(asked) if asked.as_os_str() == "off" => return None,
        Some(asked) if !asked.as_os_str().is_empty() => std::path::absolute(asked).ok()?,
        _ => CodeCache::usual_dir()?,
    };
    Some(Arc::new(CodeCache::new(dir, args.code_cache_size)))
}

/// The model that the options ask for.
fn model(args: &RunArgs) -> Result<presets::Loaded, Failure> {
    let name = args.model.as_deref().unwrap_or(presets::DEFAULT);
    Ok(presets::read(name, &args.set)?)
}

/// The guest's environment: ours.
fn environment() -> Vec<OsString> {
    env::vars_os()
        .map(|(mut variable, value)| {
            variable.push("=");
            variable.push(value);
            variable
        })
        .collect()
}
