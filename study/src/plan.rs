//! From a study file to the list of its runs, each with all that it takes to make it and a key that names all that its counts
//! depend on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sevlab_machine::CpuPreset;
use sevlab_machine::presets::{self, ConfigError, Loaded, Origin};
use sevlab_memctl::model::CoreModel;
use sevlab_workloads::manifest::{self, Manifest, Size};
use sevlab_workloads::resolve::{Places, ResolveError, sha256};

use crate::error::Error;
use crate::os;
use crate::spec::{At, Config, PARTS, Parts, Program, Spec};

/// Version of the plan's and the results' format.
pub const FORMAT: u32 = 1;

/// The folder of a study's inputs, in that of its results.
pub const INPUTS: &str = "inputs";
/// The folder of models that came from files.
pub const MODELS: &str = "models";

/// What a study consists of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// [`FORMAT`].
    pub format: u32,
    /// The study's name.
    pub study: String,
    /// The study file's name and text.
    pub file: String,
    /// As it was read.
    pub text: String,
    /// Size of the workloads.
    pub size: String,
    /// The configuration that overheads are told over; `None`: there is none without encryption.
    pub baseline: Option<String>,
    /// Names of the configurations, in order.
    pub configs: Vec<String>,
    /// What is varied.
    pub axes: Vec<PlanAxis>,
    /// Workloads, in order.
    pub workloads: Vec<PlanWorkload>,
    /// Workloads that were left out, and why.
    pub skipped: Vec<String>,
    /// sevlab's version, and
    pub version: String,
    /// the SHA-256 of its executable.
    pub build: String,
    /// The runs.
    pub entries: Vec<Entry>,
    /// Models that came from files, by file name: complete TOML.
    pub models: BTreeMap<String, String>,
}

/// An axis with its values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanAxis {
    /// The key.
    pub key: String,
    /// Its values.
    pub values: Vec<Value>,
}

/// A workload of the study.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlanWorkload {
    /// Its name.
    pub name: String,
    /// The SPEC program that it follows, and what it does.
    pub what: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// SHA-256 of the program's file.
    pub program_sha256: String,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Names all that the counts depend on.
    pub key: String,
    /// The workload.
    pub workload: String,
    /// The configuration.
    pub config: String,
    /// The values of the axes.
    pub vary: BTreeMap<String, Value>,
    /// off, sev, es or snp.
    pub sev: String,
    /// Options of `sevlab run`.
    pub options: Vec<String>,
    /// Program and arguments, as they are given to `sevlab run`.
    pub command: Vec<String>,
    /// The working directory.
    pub folder: PathBuf,
    /// Standard input, a file.
    pub stdin: Option<PathBuf>,
    /// What its standard output must be.
    pub stdout_sha256: Option<String>,
    /// Limits.
    pub seconds: Option<f64>,
    /// As above.
    pub instructions: Option<u64>,
}

impl Entry {
    /// The configuration with the values of the axes.
    #[must_use]
    pub fn label(&self) -> String {
        label(&self.config, &self.vary)
    }

    /// The command that makes the run again, without where its report goes.
    #[must_use]
    pub fn shown(&self) -> String {
        let words = self.options.iter().map(String::as_str);
        let words = words
            .chain(["--"])
            .chain(self.command.iter().map(String::as_str));
        format!(
            "sevlab run {}",
            words.map(quoted).collect::<Vec<_>>().join(" ")
        )
    }
}

/// A configuration's name with the values of the axes.
#[must_use]
pub fn label(config: &str, vary: &BTreeMap<String, Value>) -> String {
    let mut text = config.to_owned();
    for (key, value) in vary {
        text.push_str(&format!(" {key}={}", shown(value)));
    }
    text
}

/// A value as it is shown.
#[must_use]
pub fn shown(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=+:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// The SHA-256 of the running sevlab.
pub fn build() -> Result<String, Error> {
    let exe = Path::new("/proc/self/exe");
    Ok(sha256(&fs::read(exe).map_err(Error::file("reading", exe))?))
}

/// A workload that can be run, and what names it in a key.
struct Ready {
    name: String,
    command: Vec<String>,
    folder: PathBuf,
    stdin: Option<PathBuf>,
    stdout_sha256: Option<String>,
    /// Of everything that it is given.
    identity: Value,
}

impl Plan {
    /// Plans `spec` for results in `dir`; makes the inputs there unless `dry`.
    pub fn new(spec: &Spec, dir: &Path, dry: bool) -> Result<Self, Error> {
        let scratch;
        let home = if dry {
            scratch = os::scratch("sevlab-plan-")?;
            scratch.path()
        } else {
            dir
        };
        let build = build()?;
        let mut plan = Self {
            format: FORMAT,
            study: spec.name.clone(),
            file: spec.file.clone(),
            text: spec.text.clone(),
            size: spec.size.clone(),
            baseline: None,
            configs: spec.configs.iter().map(|c| c.name.value.clone()).collect(),
            axes: spec
                .axes
                .iter()
                .map(|axis| PlanAxis {
                    key: axis.key.value.clone(),
                    values: axis.values.iter().map(|v| json_value(&v.value)).collect(),
                })
                .collect(),
            workloads: Vec::new(),
            skipped: Vec::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            build,
            entries: Vec::new(),
            models: BTreeMap::new(),
        };
        // Wrong configurations are told before anything is made.
        let machines = plan.machines(spec)?;
        plan.baseline = match &spec.baseline {
            Some(name) => Some(name.value.clone()),
            None => spec
                .configs
                .iter()
                .find(|c| c.parts.sev == "off")
                .map(|c| c.name.value.clone()),
        };
        for ready in plan.programs(spec, home)? {
            for machine in &machines {
                let entry = plan.entry(spec, &ready, machine, dir);
                plan.entries.push(entry);
            }
        }
        if plan.entries.is_empty() {
            let why = plan.skipped.join("; ");
            return Err(Error::Other(format!("nothing to run: {why}")));
        }
        Ok(plan)
    }

    /// The runs, each key once, in order.
    pub fn unique(&self) -> Vec<&Entry> {
        let mut seen = BTreeSet::new();
        let first = |e: &&Entry| seen.insert(e.key.clone());
        self.entries.iter().filter(first).collect()
    }

    fn machines(&mut self, spec: &Spec) -> Result<Vec<Machine>, Error> {
        let mut machines = Vec::new();
        for config in &spec.configs {
            for chosen in combinations(spec, config) {
                machines.push(self.machine(spec, config, &chosen)?);
            }
        }
        Ok(machines)
    }

    fn machine(
        &mut self,
        spec: &Spec,
        config: &Config,
        chosen: &[(&str, &At<String>)],
    ) -> Result<Machine, Error> {
        let mut parts: Parts = config.parts.clone();
        for (key, value) in chosen {
            if PARTS.contains(key) {
                parts.put(key, &value.value);
            } else {
                parts.sets.push(At {
                    value: format!("{key}={}", value.value),
                    line: value.line,
                });
            }
        }
        let is_preset = presets::preset(&parts.model).is_some();
        let what = if is_preset {
            parts.model.clone()
        } else {
            spec.folder.join(&parts.model).display().to_string()
        };
        let sets: Vec<String> = parts.sets.iter().map(|s| s.value.clone()).collect();
        let loaded = presets::read(&what, &sets).map_err(|e| placed(spec, &parts.sets, e))?;
        let cpu = match &parts.cpu {
            Some(name) => name.parse().unwrap_or(CpuPreset::EpycMilan),
            None => loaded
                .base()
                .and_then(|base| base.parse().ok())
                .unwrap_or(CpuPreset::EpycMilan),
        };
        let mode = mode(&parts.sev);
        if !cpu.offers(mode) {
            let what = format!(
                "{} has no SEV-SNP: a [[config]] with cpu = \"epyc-milan\" or a later one has it",
                cpu.name()
            );
            return Err(spec.error(config.name.line, "config.sev", what).into());
        }
        let mut options = vec!["--sev".to_owned(), parts.sev.clone()];
        let mut add = |option: &str, value: &str| {
            options.push(option.to_owned());
            options.push(value.to_owned());
        };
        add("--cache", "hierarchy");
        if is_preset {
            add("--model", &parts.model);
            for set in &sets {
                add("--set", set);
            }
        } else {
            add("--model", &self.model_file(&loaded, &parts.model));
        }
        add("--cipher", &parts.cipher);
        add("--cpu", cpu.name());
        add("--memory", &parts.memory);
        add("--seed", &parts.seed.to_string());
        let overlap = loaded.model.core.model == CoreModel::Overlap;
        if overlap {
            add("--jit", "off");
        }
        let mut model = serde_json::to_value(&loaded.model).unwrap_or_default();
        if let Some(map) = model.as_object_mut() {
            map.remove("name");
        }
        let identity = json!({
            "sev": parts.sev, "cipher": parts.cipher, "cpu": cpu.name(), "memory": parts.memory, "seed": parts.seed,
            "jit": !overlap, "model": model,
        });
        Ok(Machine {
            config: config.name.value.clone(),
            sev: parts.sev,
            vary: chosen
                .iter()
                .map(|(key, value)| ((*key).to_owned(), json_value(&value.value)))
                .collect(),
            options,
            identity,
        })
    }

    /// Keeps a model that came from a file; its name in the study's folder.
    fn model_file(&mut self, loaded: &Loaded, from: &str) -> String {
        let text = loaded.to_toml();
        let stem = Path::new(from).file_stem().unwrap_or_default();
        let digest = sha256(text.as_bytes());
        let name = format!("{}-{}.toml", stem.to_string_lossy(), &digest[..8]);
        self.models.insert(name.clone(), text);
        format!("{MODELS}/{name}")
    }

    fn programs(&mut self, spec: &Spec, home: &Path) -> Result<Vec<Ready>, Error> {
        let mut ready = Vec::new();
        let manifest = Manifest::builtin();
        let places = Places::from_environment();
        let size: Size = spec.size.parse().map_err(Error::Other)?;
        let inputs = home.join(INPUTS);
        for name in &spec.workloads {
            if name.value == "all" {
                for workload in &manifest.workloads {
                    if spec.workloads.iter().any(|w| w.value == workload.name) {
                        continue;
                    }
                    match self.workload(workload, &places, size, &inputs) {
                        Ok(one) => ready.push(one),
                        Err(e @ ResolveError::NotInstalled { .. })
                        | Err(e @ ResolveError::Manifest(_)) => {
                            self.skipped.push(format!("{}: {e}", workload.name));
                        }
                        Err(e) => return Err(Error::Other(e.to_string())),
                    }
                }
                continue;
            }
            let refused = |what: String| spec.error(name.line, "workloads", what);
            let workload = manifest
                .get(&name.value)
                .map_err(|e| refused(e.to_string()))?;
            let one = self
                .workload(workload, &places, size, &inputs)
                .map_err(|e| refused(e.to_string()))?;
            ready.push(one);
        }
        for program in &spec.programs {
            ready.push(self.program(spec, program, &inputs)?);
        }
        Ok(ready)
    }

    fn workload(
        &mut self,
        workload: &manifest::Workload,
        places: &Places,
        size: Size,
        inputs: &Path,
    ) -> Result<Ready, ResolveError> {
        let job = places.prepare(workload, size, inputs)?;
        let case = workload.case(size)?;
        let files = workload.files.iter().chain(&case.files);
        let files: BTreeMap<_, _> = files
            .map(|f| (f.name.clone(), sha256(&f.content.bytes())))
            .collect();
        let program = match &workload.program {
            // By a name that is the same wherever sevlab was built: a path is part of what a guest finds on its stack.
            manifest::Program::Own(name) => {
                link(&job.program, &job.folder.join(name))?;
                format!("./{name}")
            }
            _ => job.program.display().to_string(),
        };
        let what = match &workload.spec {
            Some(spec) => format!("{spec}: {}", workload.what),
            None => workload.what.clone(),
        };
        let mut command = vec![program];
        command.extend(job.args.iter().cloned());
        let bytes = fs::read(&job.program).map_err(|source| ResolveError::Input {
            path: job.program.clone(),
            source,
        })?;
        let digest = sha256(&bytes);
        self.workloads.push(PlanWorkload {
            name: workload.name.clone(),
            what,
            command: command.clone(),
            program_sha256: digest.clone(),
        });
        Ok(Ready {
            name: workload.name.clone(),
            identity: json!({
                "name": workload.name, "size": size.name(), "program": digest, "command": command, "files": files,
                "stdin": job.stdin.is_some(),
            }),
            command,
            folder: job.folder,
            stdin: job.stdin,
            stdout_sha256: job.sha256,
        })
    }

    /// A program of the study file's own.
    fn program(&mut self, spec: &Spec, program: &Program, inputs: &Path) -> Result<Ready, Error> {
        let name = &program.name.value;
        let refused = |what: String| spec.error(program.name.line, "program.command", what);
        let found = find(&program.command[0], &spec.folder)
            .ok_or_else(|| refused(format!("there is no program {}", program.command[0])))?;
        let folder = inputs.join(name);
        fs::create_dir_all(&folder).map_err(Error::file("making", &folder))?;
        let folder = folder
            .canonicalize()
            .map_err(Error::file("finding", &folder))?;
        let mut files = BTreeMap::new();
        for file in &program.files {
            let from = spec.folder.join(&file.value);
            let from = from.canonicalize().map_err(Error::file("finding", &from))?;
            let to = folder.join(from.file_name().unwrap_or_default());
            link(&from, &to).map_err(|e| Error::Other(e.to_string()))?;
            let bytes = fs::read(&from).map_err(Error::file("reading", &from))?;
            files.insert(file.value.clone(), sha256(&bytes));
        }
        let mut command = program.command.clone();
        command[0] = found.display().to_string();
        let bytes = fs::read(&found).map_err(Error::file("reading", &found))?;
        let digest = sha256(&bytes);
        self.workloads.push(PlanWorkload {
            name: name.clone(),
            what: "a program of the study file".to_owned(),
            command: command.clone(),
            program_sha256: digest.clone(),
        });
        Ok(Ready {
            name: name.clone(),
            identity: json!({"name": name, "program": digest, "command": command, "files": files}),
            command,
            folder,
            stdin: None,
            stdout_sha256: program.stdout_sha256.clone(),
        })
    }

    fn entry(&self, spec: &Spec, ready: &Ready, machine: &Machine, dir: &Path) -> Entry {
        let identity = json!({
            "format": FORMAT, "build": self.build, "workload": ready.identity, "machine": machine.identity,
        });
        let mut options = machine.options.clone();
        if let Some(limit) = spec.limit.instructions {
            options.push("--limit-instructions".to_owned());
            options.push(limit.to_string());
        }
        for option in &mut options {
            // A run's working directory is another.
            if option.starts_with(MODELS) && option.ends_with(".toml") {
                let file = dir.join(&*option);
                *option = std::path::absolute(&file)
                    .unwrap_or(file)
                    .display()
                    .to_string();
            }
        }
        Entry {
            key: sha256(identity.to_string().as_bytes())[..32].to_owned(),
            workload: ready.name.clone(),
            config: machine.config.clone(),
            vary: machine.vary.clone(),
            sev: machine.sev.clone(),
            options,
            command: ready.command.clone(),
            folder: ready.folder.clone(),
            stdin: ready.stdin.clone(),
            stdout_sha256: ready.stdout_sha256.clone(),
            seconds: spec.limit.seconds,
            instructions: spec.limit.instructions,
        }
    }
}

/// A configuration with values for the axes.
struct Machine {
    config: String,
    sev: String,
    vary: BTreeMap<String, Value>,
    options: Vec<String>,
    identity: Value,
}

/// Every combination of the axes' values.
fn combinations<'a>(spec: &'a Spec, config: &Config) -> Vec<Vec<(&'a str, &'a At<String>)>> {
    let mut all = vec![Vec::new()];
    if !config.vary {
        return all;
    }
    for axis in &spec.axes {
        all = all
            .iter()
            .flat_map(|chosen| {
                axis.values.iter().map(move |value| {
                    let mut chosen = chosen.clone();
                    chosen.push((axis.key.value.as_str(), value));
                    chosen
                })
            })
            .collect();
    }
    all
}

/// An error of a setting, told where the study file has the setting.
fn placed(spec: &Spec, sets: &[At<String>], error: ConfigError) -> ConfigError {
    let Origin::Set(text) = &error.at else {
        return error;
    };
    let Some(set) = sets.iter().find(|s| s.value == *text) else {
        return error;
    };
    ConfigError {
        at: Origin::File {
            file: spec.file.clone(),
            line: Some(set.line),
        },
        ..error
    }
}

fn mode(name: &str) -> sevlab_machine::SevMode {
    use sevlab_machine::SevMode;
    match name {
        "sev" => SevMode::Sev,
        "es" => SevMode::Es,
        "snp" => SevMode::Snp,
        _ => SevMode::Off,
    }
}

/// A value of an axis: a number or a truth where it is one.
fn json_value(text: &str) -> Value {
    serde_json::from_str(&text.replace('_', ""))
        .ok()
        .filter(|v: &Value| v.is_number() || v.is_boolean())
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// The file of a program, as a shell would find it; one with a slash is relative to the study file.
fn find(name: &str, folder: &Path) -> Option<PathBuf> {
    if name.contains('/') {
        return folder.join(name).canonicalize().ok();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let standard = ["/usr/bin", "/bin"].map(PathBuf::from);
    standard
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// Makes `to` a link to `from`, if it is not yet; processes in parallel may be at the same.
fn link(from: &Path, to: &Path) -> Result<(), ResolveError> {
    if fs::read_link(to).is_ok_and(|there| there == from) {
        return Ok(());
    }
    let temporary = to.with_extension(format!("{}.tmp", std::process::id()));
    let _ = fs::remove_file(&temporary);
    std::os::unix::fs::symlink(from, &temporary)
        .and_then(|()| fs::rename(&temporary, to))
        .map_err(|source| ResolveError::Input {
            path: to.to_owned(),
            source,
        })
}
