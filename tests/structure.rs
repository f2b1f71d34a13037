//! The shape of the house, held by a test: dependencies between modules point one way, files stay
//! small, and every module says what it is for. When an arrow is refused, move the code, do not
//! widen the table without a reason that belongs in the pull request.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// For each module, what it may use directly. Everything may use what [`FREE`] names.
const ARROWS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    (
        "cli",
        &[
            "service",
            "routes",
            "config",
            "train",
            "infer",
            "tune",
            "data",
            "models",
            "store",
            "http",
            "objects",
            "app",
            "jobs",
            "bedrock",
            "graders",
            // `models merge` is a command over files alone.
            "artifacts",
        ],
    ),
    ("service", &["routes", "worker", "http", "app", "jobs", "store", "objects", "net", "models", "infer", "config"]),
    ("routes", &["bedrock", "http", "app"]),
    ("bedrock", &["http", "app", "jobs", "store", "objects", "models", "infer", "train", "data", "config", "graders"]),
    (
        "worker",
        &["app", "jobs", "store", "objects", "models", "infer", "train", "artifacts", "data", "config", "graders"],
    ),
    ("http", &["app", "net", "store", "config"]),
    ("app", &["infer", "models", "store", "objects", "config"]),
    ("jobs", &["store"]),
    ("graders", &["train", "infer", "tune", "models", "data"]),
    ("train", &["infer", "tune", "models", "kernels", "data", "artifacts"]),
    ("artifacts", &["tune", "models"]),
    ("infer", &["tune", "models", "kernels", "data"]),
    ("data", &["models"]),
    ("tune", &["models", "kernels"]),
    ("models", &["kernels"]),
    ("kernels", &[]),
    ("objects", &["net"]),
    ("net", &[]),
    ("store", &[]),
    // The rule of what lies in a folder of object storage, for the settings that name one.
    ("config", &["objects"]),
    ("rng", &[]),
    ("durable", &[]),
    ("sqlite", &[]),
    ("clock", &[]),
    ("error", &[]),
    ("fault_points", &[]),
];

/// What every module may use.
const FREE: &[&str] = &["error", "clock", "rng", "durable", "fault_points", "sqlite"];

/// No file is longer than this; nine in ten stay under [`USUAL_LINES`].
const MAX_LINES: usize = 700;
const USUAL_LINES: usize = 400;

#[test]
fn dependencies_between_modules_point_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut wrong = BTreeSet::new();
    for file in sources() {
        let module = module_of(&file);
        let Some(allowed) = allowed.get(module.as_str()) else {
            if module != "lib" {
                wrong.insert(format!("{module}: a new module needs a line in tests/structure.rs"));
            }
            continue;
        };
        for used in uses(&code_of(&file)) {
            if used != module && !FREE.contains(&used.as_str()) && !allowed.contains(&used.as_str()) {
                wrong.insert(format!("{} uses crate::{used}, which {module} may not", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that point the wrong way:\n{}", join(&wrong));
}

#[test]
fn the_table_of_arrows_has_no_cycle() {
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut done = BTreeSet::new();
    // Peel off modules that use only what was peeled before; a cycle leaves something behind.
    while let Some(next) =
        arrows.keys().find(|m| !done.contains(*m) && arrows[*m].iter().all(|used| done.contains(used)))
    {
        done.insert(*next);
    }
    let left: Vec<_> = arrows.keys().filter(|m| !done.contains(*m)).collect();
    assert!(left.is_empty(), "these modules use each other in a circle: {left:?}");
}

/// Files that write past `durable`, and why.
const OWN_WRITERS: &[(&str, &str)] = &[
    ("durable.rs", "it is what the others write with"),
    ("objects/embedded/files.rs", "the embedded store has its own steps, and its own test that fails each of them"),
    ("objects/embedded/intake.rs", "as files.rs"),
    ("objects/embedded/faults.rs", "that test"),
    ("store/db.rs", "an empty file whose content is the database's own"),
    ("worker/presence.rs", "a lock, which stays empty"),
    ("fault_points.rs", "what tests alone switch on"),
    ("kernels/cuda/emulator.rs", "a compiler's output, for tests on machines without a GPU"),
];

#[test]
fn files_are_written_durably_or_not_at_all() {
    // A write whose error is lost leaves a short file that passes for a whole one.
    const WRITES: [&str; 7] =
        ["fs::write(", "File::create", "fs::copy(", "fs::rename(", "OpenOptions", "File::options", "serialize_to_file"];
    let mut wrong = BTreeSet::new();
    for file in sources() {
        let known = |(name, _): &(&str, &str)| file.ends_with(name);
        // Modules of tests alone lie beside what they test.
        let tests = file.components().any(|part| part.as_os_str() == "tests") || file.ends_with("tests.rs");
        if tests || OWN_WRITERS.iter().any(known) {
            continue;
        }
        let code = code_of(&file);
        wrong.extend(WRITES.iter().filter(|write| code.contains(*write)).map(|write| {
            format!("{} has {write}: write with crate::durable, which syncs and tells every error", file.display())
        }));
    }
    assert!(wrong.is_empty(), "files written past crate::durable:\n{}", join(&wrong));
}

#[test]
fn files_stay_small() {
    let mut sizes: Vec<(usize, PathBuf)> =
        sources().into_iter().map(|file| (text_of(&file).lines().count(), file)).collect();
    sizes.sort();
    let long: Vec<_> = sizes.iter().filter(|(lines, _)| *lines > MAX_LINES).collect();
    assert!(long.is_empty(), "longer than {MAX_LINES} lines: {long:?}");
    let usual = sizes.iter().filter(|(lines, _)| *lines <= USUAL_LINES).count();
    assert!(
        usual * 10 >= sizes.len() * 9,
        "nine in ten files stay under {USUAL_LINES} lines; these do not: {:?}",
        &sizes[usual..]
    );
}

#[test]
fn every_module_opens_with_what_it_is_for() {
    let silent: Vec<_> = sources().into_iter().filter(|file| !text_of(file).starts_with("//!")).collect();
    assert!(silent.is_empty(), "no //! paragraph at the top of {silent:?}");
}

/// Modules whose errors reach callers over the wire.
const FACING: &[&str] = &[
    "app",
    "artifacts",
    "bedrock",
    "data",
    "graders",
    "infer",
    "jobs",
    "models",
    "objects",
    "train",
    "tune",
    "worker",
];
/// Their errors about a folder are for whoever starts the service.
const FOR_OPERATORS: &[&str] = &["src/models/registry.rs", "src/objects/embedded/files.rs"];

#[test]
fn no_message_for_callers_says_where_the_server_keeps_a_file() {
    let mut wrong = BTreeSet::new();
    for file in sources() {
        let exempt = FOR_OPERATORS.iter().any(|known| file.ends_with(known));
        if exempt || !FACING.contains(&module_of(&file).as_str()) {
            continue;
        }
        let code = code_of(&file);
        for made in ["Error::validation(", "Error::not_found(", "Error::new("] {
            for (at, _) in code.match_indices(made) {
                let message = argument(&code[at + made.len()..]);
                if message.contains(".display()") || message.contains("to_string_lossy") {
                    wrong.insert(format!("{}: {message}", file.display()));
                }
            }
        }
    }
    let rule = "a path belongs into the log, by Error::at; a message names the file";
    assert!(wrong.is_empty(), "{rule}:\n{}", join(&wrong));
}

/// What stands before the bracket that closes.
fn argument(text: &str) -> &str {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth == 0 => return &text[..at],
            ')' => depth -= 1,
            _ => {}
        }
    }
    text
}

fn sources() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.len() > 10, "the sources were found");
    found
}

/// The top-level module a file belongs to.
fn module_of(file: &Path) -> String {
    let inside = file.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_string()
}

fn text_of(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap()
}

/// The file without its unit tests and comments: both may speak of anything.
fn code_of(file: &Path) -> String {
    let text = text_of(file);
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Every `crate::name` and `tunesmith::name`, also the names inside `crate::{a, b::c}`.
fn uses(code: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for root in ["crate::", "tunesmith::"] {
        for (at, _) in code.match_indices(root) {
            let rest = &code[at + root.len()..];
            match rest.strip_prefix('{') {
                None => drop(used.insert(name(rest))),
                Some(group) => {
                    let mut depth = 0;
                    let mut start = true;
                    for (i, c) in group.char_indices() {
                        match c {
                            '{' => depth += 1,
                            '}' if depth == 0 => break,
                            '}' => depth -= 1,
                            ',' if depth == 0 => start = true,
                            c if start && depth == 0 && !c.is_whitespace() => {
                                used.insert(name(&group[i..]));
                                start = false;
                            }
                            _ => {}
                        }
                    }
                }
            }
        }
    }
    // Macros and items re-exported at the root are not modules.
    used.retain(|name| ARROWS.iter().any(|(module, _)| module == name));
    used
}

fn name(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn join(lines: &BTreeSet<String>) -> String {
    lines.iter().cloned().collect::<Vec<_>>().join("\n")
}
