//! Puts the two servers under `target/stack`, once: ClickHouse's engine as a shared library from
//! npm, and ministack (S3, SQS, SNS, EventBridge) from PyPI in an environment of its own.
//!
//! Several test binaries may install at the same time: a file lock makes the second one wait. A
//! stamp is written last, so that an interrupted installation is repeated. It has the requested
//! versions, so that a different version is installed again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// The version of ClickHouse's engine.
pub const CLICKHOUSE_VERSION: &str = "26.7.3-stable.1";
/// The version of ministack; must be the one in `requirements.txt`.
pub const MINISTACK_VERSION: &str = "1.5.33";

const REQUIREMENTS: &str = include_str!("../requirements.txt");
const DEPLOY_REQUIREMENTS: &str = include_str!("../requirements-deploy.txt");
const CARGO_REQUIREMENTS: &str = include_str!("../requirements-cargo.txt");
/// The launcher's modules, each with its file's name.
const LAUNCHER: [(&str, &str); 2] = [
    ("launcher.py", include_str!("../launcher/launcher.py")),
    (REPLICA_MODULE, include_str!("../launcher/replica.py")),
];
const REPLICA_MODULE: &str = "replica.py";
const STAMP: &str = "installed";
/// Debian's packages of ZooKeeper and of what a server on its own needs.
const ZOOKEEPER_PACKAGES: [&str; 4] = [
    "libzookeeper-java",
    "libdropwizard-metrics-java",
    "libslf4j-java",
    "libsnappy-java",
];
const ZOOKEEPER_JARS: [&str; 6] = [
    "zookeeper.jar",
    "zookeeper-jute.jar",
    "metrics-core.jar",
    "slf4j-api.jar",
    "slf4j-simple.jar",
    "snappy-java.jar",
];

/// What is needed to start the servers.
#[derive(Debug, Clone)]
pub struct Installed {
    /// The interpreter that has ministack.
    pub python: PathBuf,
    /// The script that starts and ends a server.
    pub launcher: PathBuf,
    /// ClickHouse's engine.
    pub libchdb: PathBuf,
}

/// Installs Helm's engine, the schemas of Kubernetes and cfn-lint, and returns the Python that has
/// them.
///
/// # Errors
///
/// As for [`install`].
pub fn install_deploy_tools() -> Result<PathBuf> {
    let name = "Helm's engine and cfn-lint";
    let programs = install_python_tools("deploy-tools", DEPLOY_REQUIREMENTS, name)?;
    Ok(programs.join("python"))
}

/// Installs cargo-nextest and cargo-deny as their own projects build them, and returns the folder
/// that has the programs.
///
/// # Errors
///
/// As for [`install`].
pub fn install_cargo_tools() -> Result<PathBuf> {
    let name = "cargo-nextest and cargo-deny";
    install_python_tools("cargo-tools", CARGO_REQUIREMENTS, name)
}

/// Installs these packages into an environment of their own under `target/stack`, and returns the
/// folder that has its programs.
fn install_python_tools(folder: &str, requirements: &str, name: &str) -> Result<PathBuf> {
    let root = stack_directory()?;
    let _lock = lock(&root)?;
    let environment = root.join(folder);
    once(&environment, requirements, name, "", |directory| {
        install_python(directory, requirements)
    })?;
    Ok(environment.join("bin"))
}

/// Returns the folder that has `prometheus` and `promtool`: the machine's own, or those of Debian's
/// package, unpacked under `target/stack`.
///
/// # Errors
///
/// Fails if there are none and the machine does not run Debian or a derivative.
pub fn install_prometheus() -> Result<PathBuf> {
    if let Some(folder) = folder_in_path(&["prometheus", "promtool"]) {
        return Ok(folder);
    }
    let root = stack_directory()?;
    let _lock = lock(&root)?;
    let directory = root.join("prometheus");
    once(&directory, "", "Prometheus", "", |directory| {
        unpack_packages(directory, &["prometheus"])
            .context("prometheus and promtool are needed: install Prometheus")
    })?;
    Ok(directory.join("usr/bin"))
}

/// What is needed to start ZooKeeper.
#[derive(Debug, Clone)]
pub struct ZooKeeper {
    /// The Java of the machine.
    pub java: PathBuf,
    /// Its classes, and those of what it needs.
    pub class_path: String,
}

/// Unpacks ZooKeeper from Debian's packages under `target/stack`.
///
/// # Errors
///
/// Fails if there is no Java, or the machine does not run Debian or a derivative.
pub fn install_zookeeper() -> Result<ZooKeeper> {
    let java = in_path("java").context("ZooKeeper needs Java: install a Java runtime")?;
    let root = stack_directory()?;
    let _lock = lock(&root)?;
    let directory = root.join("zookeeper");
    let content = ZOOKEEPER_PACKAGES.join(" ");
    once(&directory, &content, "ZooKeeper", "", |directory| {
        unpack_packages(directory, &ZOOKEEPER_PACKAGES)
            .context("ZooKeeper comes as Debian's packages: apt-get and dpkg-deb are needed")
    })?;
    let jars = directory.join("usr/share/java");
    let jars = ZOOKEEPER_JARS.map(|jar| jars.join(jar).display().to_string());
    Ok(ZooKeeper {
        java,
        class_path: jars.join(":"),
    })
}

/// Only the files of Debian's packages are needed: they are unpacked, not installed.
fn unpack_packages(directory: &Path, packages: &[&str]) -> Result<()> {
    let download = || {
        run(Command::new("apt-get")
            .args(["download", "-qq"])
            .args(packages)
            .current_dir(directory))
    };
    // A fresh machine may not have a package index yet.
    download().or_else(|_| {
        run(Command::new("apt-get").args(["update", "-qq"])).and_then(|()| download())
    })?;
    let files = fs::read_dir(directory)?.collect::<Result<Vec<_>, _>>()?;
    for file in files {
        let package = file.path();
        run(Command::new("dpkg-deb")
            .arg("-x")
            .arg(&package)
            .arg(directory))?;
        fs::remove_file(package).context("cannot remove a package")?;
    }
    Ok(())
}

/// Installs what is missing and returns the paths.
///
/// # Errors
///
/// Fails if Python or npm is missing or cannot install; the error includes what to do.
pub fn install() -> Result<Installed> {
    let root = stack_directory()?;
    let _lock = lock(&root)?;

    let environment = root.join(format!("ministack-{MINISTACK_VERSION}"));
    once(
        &environment,
        REQUIREMENTS,
        "ministack",
        MINISTACK_VERSION,
        |directory| install_python(directory, REQUIREMENTS),
    )?;

    let engine = root.join(format!("clickhouse-{CLICKHOUSE_VERSION}"));
    let package = format!("@chdb/lib-{}@{CLICKHOUSE_VERSION}", platform()?);
    once(
        &engine,
        &package,
        "ClickHouse",
        CLICKHOUSE_VERSION,
        |directory| install_clickhouse(directory, &package),
    )?;

    Ok(Installed {
        python: environment.join("bin/python"),
        launcher: write_launcher(&root)?,
        libchdb: engine
            .join("node_modules/@chdb")
            .join(format!("lib-{}", platform()?))
            .join("libchdb.so"),
    })
}

/// Installs what a replicated ClickHouse needs: ZooKeeper, and the one build of the engine that can
/// be a replica. Returns the paths.
///
/// # Errors
///
/// Fails as [`install`] and [`install_zookeeper`] do, and if the engine of this platform or version
/// is another build.
pub fn install_cluster() -> Result<Installed> {
    install_zookeeper()?;
    let installed = install()?;
    check_that_it_can_be_a_replica(&installed, &installed.libchdb)?;
    Ok(installed)
}

fn check_that_it_can_be_a_replica(installed: &Installed, engine: &Path) -> Result<()> {
    let checked = Command::new(&installed.python)
        .arg(installed.launcher.with_file_name(REPLICA_MODULE))
        .arg(engine)
        .output()
        .context("cannot run Python")?;
    ensure!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stderr).trim()
    );
    Ok(())
}

/// The environment variable with the Chromium that tests use instead of the one in the path.
pub const CHROMIUM_VARIABLE: &str = "SLUICE_TEST_CHROMIUM";

/// Finds Chromium. If there is none, and this process is root on Debian, installs Debian's.
///
/// # Errors
///
/// Fails if there is none; the error includes what to do.
pub fn chromium() -> Result<PathBuf> {
    let _lock = lock(&stack_directory()?)?;
    if let Some(found) = present_chromium() {
        return Ok(found);
    }
    let advice = format!(
        "the tests of the live page need Chromium: install it (on Debian as root: \
         apt-get install chromium), or name one by {CHROMIUM_VARIABLE}"
    );
    ensure!(is_root() && in_path("apt-get").is_some(), advice);
    say("installing Debian's chromium (once)");
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    run(apt().arg("update")).context(advice.clone())?;
    run(apt()
        .args(["install", "--yes", "--no-install-recommends"])
        .args(["chromium", "fonts-dejavu-core"]))
    .context(advice.clone())?;
    present_chromium().context(advice)
}

fn present_chromium() -> Option<PathBuf> {
    let named = std::env::var_os(CHROMIUM_VARIABLE).map(PathBuf::from);
    let names = ["chromium", "chromium-browser", "google-chrome"];
    named.or_else(|| names.into_iter().find_map(in_path))
}

fn in_path(program: &str) -> Option<PathBuf> {
    folder_in_path(&[program]).map(|folder| folder.join(program))
}

/// Returns the first folder of the path that has all of these programs.
fn folder_in_path(programs: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).find(|folder| {
        programs
            .iter()
            .all(|program| folder.join(program).is_file())
    })
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|output| output.stdout == b"0\n")
}

fn stack_directory() -> Result<PathBuf> {
    let root = target_directory().join("stack");
    fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
    Ok(root)
}

/// Held until it is dropped.
fn lock(root: &Path) -> Result<File> {
    let lock = File::create(root.join("lock"))?;
    lock.lock()
        .with_context(|| format!("cannot lock {}", root.display()))?;
    Ok(lock)
}

/// Cargo's target directory: this workspace's, unless the environment names another.
pub fn target_directory() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let workspace = workspace.canonicalize().unwrap_or(workspace);
    match std::env::var_os("CARGO_TARGET_DIR") {
        // A relative path is relative to cargo's working directory, which is usually the workspace.
        Some(directory) => workspace.join(directory),
        None => workspace.join("target"),
    }
}

fn once(
    directory: &Path,
    content: &str,
    name: &str,
    version: &str,
    install: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let stamp = directory.join(STAMP);
    if fs::read_to_string(&stamp).is_ok_and(|found| found == content) {
        return Ok(());
    }
    let what = format!("{name} {version}");
    say(&format!("installing {} (once)", what.trim_end()));
    // The package is installed in a temporary place and then renamed, since npm or pip of a killed
    // run may still be writing. What such a run left is removed if possible.
    let name_of = |path: &Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let prefix = format!("{}.new-", name_of(directory));
    let parent = directory.parent().unwrap_or(directory);
    for entry in fs::read_dir(parent)?.flatten() {
        if name_of(&entry.path()).starts_with(&prefix) {
            drop(remove(&entry.path()));
        }
    }
    let stage = parent.join(format!("{prefix}{}", std::process::id()));
    remove(&stage)?;
    fs::create_dir_all(&stage)?;
    if let Err(error) = install(&stage) {
        drop(remove(&stage));
        return Err(error).with_context(|| format!("cannot install {name} {version}"));
    }
    fs::write(stage.join(STAMP), content)?;
    remove(directory)?;
    fs::rename(&stage, directory)
        .with_context(|| format!("cannot put {name} into {}", directory.display()))?;
    Ok(())
}

fn remove(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    Ok(())
}

/// Creates an environment with these packages.
fn install_python(directory: &Path, requirements: &str) -> Result<()> {
    let check = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))";
    let fit = Command::new("python3").args(["-c", check]).output();
    ensure!(
        fit.is_ok_and(|output| output.status.success()),
        "Python 3.11 or newer with its venv module is needed: install python3 and python3-venv"
    );
    run(Command::new("python3").args(["-m", "venv"]).arg(directory))?;
    let listed = directory.join("requirements.txt");
    fs::write(&listed, requirements)?;
    run(Command::new(directory.join("bin/python"))
        .args(["-m", "pip", "install", "--quiet", "--no-input", "--no-deps"])
        .args(["--disable-pip-version-check", "--requirement"])
        .arg(&listed))
}

fn install_clickhouse(directory: &Path, package: &str) -> Result<()> {
    let present = Command::new("npm").arg("--version").output();
    ensure!(
        present.is_ok_and(|output| output.status.success()),
        "npm is needed: install Node.js with npm"
    );
    run(Command::new("npm")
        .args(["install", "--no-save", "--no-audit", "--no-fund"])
        .arg("--prefix")
        .arg(directory)
        .arg(package))
}

/// Writes the launcher to files, so that a binary of this workspace works after the sources have
/// moved. The files are renamed into place, since another process may be starting it.
fn write_launcher(root: &Path) -> Result<PathBuf> {
    for (name, content) in LAUNCHER {
        let file = root.join(name);
        if fs::read_to_string(&file).is_ok_and(|found| found == content) {
            continue;
        }
        let fresh = root.join(format!("{name}.new"));
        fs::write(&fresh, content)?;
        fs::rename(&fresh, &file)?;
    }
    Ok(root.join("launcher.py"))
}

fn platform() -> Result<&'static str> {
    match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => Ok("linux-x64-gnu"),
        ("linux", "aarch64") => Ok("linux-arm64-gnu"),
        ("macos", "x86_64") => Ok("darwin-x64"),
        ("macos", "aarch64") => Ok("darwin-arm64"),
        (os, arch) => bail!(
            "there is no embedded ClickHouse for {os} on {arch}: \
             set SLUICE_TEST_CLICKHOUSE_URL to a server of your own"
        ),
    }
}

/// Runs a command and waits for it to exit.
///
/// # Errors
///
/// Fails if the command cannot be run or fails; the error includes its output.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let output = command
        .output()
        .with_context(|| format!("cannot run {shown}"))?;
    ensure!(
        output.status.success(),
        "{shown} failed ({}):\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[expect(clippy::print_stderr, reason = "a person waits for this")]
fn say(text: &str) {
    eprintln!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_build_of_the_engine_is_refused_in_one_line() {
        let installed = install().unwrap();
        let error = check_that_it_can_be_a_replica(&installed, &installed.launcher);
        let error = error.unwrap_err().to_string();
        assert!(error.ends_with("launcher.py is another build"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}
