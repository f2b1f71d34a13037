//! Model files that want to harm: none stops the service, each is refused by name, and what no check foresees costs
//! the one import that brought it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tunesmith::objects::{Put, Uri};
use tunesmith::worker::Pool;

use super::imports::{CREATE, JOBS, fixture, get, invoke, job, put, put_adapter, settled, source};
use crate::support::{TINY, TestApp, until, with_app, with_settings, with_worker};

/// Imports `folder` and gives the reason why that failed.
async fn failure(app: &TestApp, name: &str, folder: &str) -> String {
    let reply = app.call("POST", JOBS, Some(&job(name, folder))).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    let ended = settled(app, JOBS, name, "status", "InProgress").await;
    assert_eq!(ended["status"], "Failed", "{ended}");
    ended["failureMessage"].as_str().unwrap().to_string()
}

/// Makes a custom model of `folder` and gives the reason why that failed.
async fn custom_failure(app: &TestApp, name: &str, folder: &str) -> String {
    let body = json!({ "modelName": name, "modelSourceConfig": source(folder) });
    let reply = app.call("POST", CREATE, Some(&body)).await;
    assert_eq!(reply.status, 202, "{}", reply.text());
    let ended = settled(app, "/custom-models", name, "modelStatus", "Creating").await;
    assert_eq!(ended["modelStatus"], "Failed", "{ended}");
    ended["failureMessage"].as_str().unwrap().to_string()
}

#[test]
fn a_config_json_of_a_trillion_layers_is_refused_by_name_wherever_it_comes_in() {
    with_app(async |app| {
        let pool = Pool::start(app.service.app.clone()).await.unwrap();
        let config = r#"{"architectures":["LlamaForCausalLM"],"vocab_size":8,"hidden_size":8,"intermediate_size":8,
            "num_hidden_layers":1000000000000,"num_attention_heads":2}"#;
        put(&app, "llama", "deep", &[("config.json", Some(config))]).await;
        let said = "s3://tuning/deep/config.json: num_hidden_layers is 1000000000000; 1024 is the most";
        let body = json!({ "modelName": "deep", "modelSourceConfig": source("deep") });
        let refused = app.call("POST", CREATE, Some(&body)).await;
        assert_eq!((refused.status, refused.error()), (400, "ValidationException"));
        assert_eq!(refused.message(), said);
        assert_eq!(failure(&app, "deep", "deep").await, said);
        assert_eq!(invoke(&app, TINY).await.status, 200, "everybody else is served");
        pool.drain().await;
        app
    });
}

#[test]
fn files_beyond_their_limits_are_refused_by_name() {
    with_app(async |app| {
        let pool = Pool::start(app.service.app.clone()).await.unwrap();
        let nested = |key: &str| format!("{}1{}", format!("{{\"{key}\":").repeat(20_000), "}".repeat(20_000));
        let large = format!("{{}}{}", " ".repeat(1 << 20));
        let patterns: Value = (0..5000).map(|at| (format!("layers.{at}.q_proj"), json!(1))).collect();
        let heavy: Value = json!({ "((a{100}){100}){100}": 1 });
        for (name, file, text, said) in [
            ("large", "generation_config.json", large.as_str(), "generation_config.json: it has more than the 1048576"),
            ("nested-1", "config.json", &nested("a"), "config.json is not valid JSON: recursion limit"),
            ("nested-2", "tokenizer.json", &nested("normalizer"), "s3://tuning/nested-2/tokenizer.json: "),
            ("nested-3", "tokenizer_config.json", &nested("bos_token"), "tokenizer_config.json: recursion limit"),
            ("nested-4", "generation_config.json", &nested("eos_token_id"), "generation_config.json: recursion limit"),
            ("nested-5", "model.safetensors.index.json", &nested("weight_map"), "index.json: invalid type: map"),
            (
                "escape",
                "model.safetensors.index.json",
                r#"{"weight_map": {"a": "../../secret.safetensors"}}"#,
                "\"../../secret.safetensors\" is not a file name",
            ),
        ] {
            put(&app, "llama", name, &[(file, Some(text))]).await;
            let message = failure(&app, name, name).await;
            assert!(message.contains(said) && message.len() <= 2048, "{name}: {message}");
        }
        let adapter = std::fs::read_to_string(fixture("lora/after/adapter_config.json")).unwrap();
        for (name, patterns, said) in [
            (
                "many",
                &patterns,
                "adapter_config.json: the number of entries in alpha_pattern is 5000; 4096 is the most",
            ),
            ("heavy", &heavy, "adapter_config.json: alpha_pattern: Compiled regex exceeds size limit"),
        ] {
            let mut config: Value = serde_json::from_str(&adapter).unwrap();
            config["base_model_name_or_path"] = TINY.into();
            config["alpha_pattern"] = patterns.clone();
            put(&app, "lora/after", name, &[("adapter_config.json", Some(&config.to_string()))]).await;
            let message = custom_failure(&app, name, name).await;
            assert!(message.contains(said), "{name}: {message}");
        }
        assert_eq!(invoke(&app, TINY).await.status, 200, "everybody else is served");
        pool.drain().await;
        app
    });
}

#[test]
fn safetensors_that_lie_about_their_size_are_refused_by_name() {
    with_app(async |app| {
        let pool = Pool::start(app.service.app.clone()).await.unwrap();
        for entry in
            std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds/safetensors")).unwrap()
        {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().replace('_', "-");
            put(&app, "llama", &name, &[]).await;
            let to = format!("s3://tuning/{name}/model-00002-of-00003.safetensors");
            app.service.app.objects.put_file(&Uri::parse(&to).unwrap(), &path, &Put::default()).await.unwrap();
            let message = failure(&app, &name, &name).await;
            // Those that are whole lack what the model needs.
            let sound = ["whole", "empty-overflow"].contains(&name.as_str());
            let expected = if sound { format!("s3://tuning/{name}/model.safetensors.index.json") } else { to };
            assert!(message.starts_with(&format!("{expected}: ")), "{name}: {message}");
        }
        assert_eq!(invoke(&app, TINY).await.status, 200, "everybody else is served");
        pool.drain().await;
        app
    });
}

#[test]
fn imports_fetch_the_shards_that_the_index_names_whatever_they_are_called() {
    with_app(async |app| {
        let pool = Pool::start(app.service.app.clone()).await.unwrap();
        let index = std::fs::read_to_string(fixture("llama/model.safetensors.index.json")).unwrap();
        let index = index.replace("model-0000", "pytorch_model-0000");
        put(&app, "llama", "named", &[("model.safetensors.index.json", Some(&index))]).await;
        for at in 1..=3 {
            let shard = format!("model-0000{at}-of-00003.safetensors");
            let to = Uri::parse(&format!("s3://tuning/named/pytorch_{shard}")).unwrap();
            if at == 3 {
                let message = failure(&app, "lacking", "named").await;
                assert_eq!(
                    message,
                    format!("s3://tuning/named/pytorch_{shard} is missing: model.safetensors.index.json names it")
                );
            }
            app.service.app.objects.put_file(&to, &fixture("llama").join(&shard), &Put::default()).await.unwrap();
        }
        assert_eq!(app.call("POST", JOBS, Some(&job("named", "named"))).await.status, 201);
        let done = settled(&app, JOBS, "named", "status", "InProgress").await;
        assert_eq!(done["status"], "Completed", "{done}");
        assert_eq!(invoke(&app, "model-named").await.json(), invoke(&app, TINY).await.json());
        pool.drain().await;
        app
    });
}

/// A tokenizer of so many words, which its file tells in a few bytes each.
fn words(count: usize) -> String {
    let words: serde_json::Map<String, Value> = (0..count).map(|at| (format!("w{at}"), at.into())).collect();
    json!({ "version": "1.0", "added_tokens": [], "pre_tokenizer": { "type": "Whitespace" },
        "model": { "type": "WordLevel", "vocab": words, "unk_token": "w0" } })
    .to_string()
}

#[test]
fn a_file_that_asks_for_more_memory_than_an_inspection_has_costs_that_import_alone() {
    with_settings(&["--inspection-memory=96MiB"], async |app| {
        let pool = Pool::start(app.service.app.clone()).await.unwrap();
        put(&app, "llama", "huge", &[("tokenizer.json", Some(&words(1_000_000)))]).await;
        let message = failure(&app, "huge", "huge").await;
        assert!(message.contains("more than the 96 MiB of memory that an inspection may take"), "{message}");
        put(&app, "llama", "sound", &[]).await;
        assert_eq!(app.call("POST", JOBS, Some(&job("sound", "sound"))).await.status, 201);
        let done = settled(&app, JOBS, "sound", "status", "InProgress").await;
        assert_eq!(done["status"], "Completed", "{done}");
        pool.drain().await;
        app
    });
}

/// A program that stands where the inspector does.
fn program(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn an_inspection_that_ends_without_a_verdict_is_a_failure_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let told = format!(
        "mkdir {}/told 2>/dev/null && kill -TERM $$\necho '{{\"refused\":\"looked at twice\"}}'",
        folder.path().display()
    );
    for (name, text, said) in [
        ("aborts", "kill -ABRT $$", "ended unexpectedly"),
        ("panics", "exit 101", "ended unexpectedly"),
        ("spins", "kill -XCPU $$", "seconds of processor time and was ended"),
        ("babbles", "head -c 9000000 /dev/zero; head -c 9000000 /dev/zero >&2; exit 101", "ended unexpectedly"),
        // Neither is the model's doing: one is the machine's, and the other is tried again.
        ("cannot-begin", "exit 1", "unexpected error"),
        ("is-told-to-end", told.as_str(), "looked at twice"),
    ] {
        let program = program(folder.path(), name, text);
        with_settings(&["--inspector", program.to_str().unwrap()], async |app| {
            let pool = Pool::start(app.service.app.clone()).await.unwrap();
            put(&app, "llama", name, &[]).await;
            let message = failure(&app, name, name).await;
            assert!(message.contains(said), "{name}: {message}");
            pool.drain().await;
            app
        });
    }
}

#[test]
fn an_inspection_knows_no_secrets_and_is_gone_when_the_importer_is_told_to_stop() {
    let folder = tempfile::tempdir().unwrap();
    let (seen, pid) = (folder.path().join("seen"), folder.path().join("pid"));
    let text = format!(
        "env > {}\necho $$ > {}.new\nmv {}.new {}\nexec sleep 3600",
        seen.display(),
        pid.display(),
        pid.display(),
        pid.display()
    );
    let program = program(folder.path(), "sleeps", &text);
    with_settings(&["--inspector", program.to_str().unwrap()], async |app| {
        let pool = Pool::start(app.service.app.clone()).await.unwrap();
        put(&app, "llama", "slow", &[]).await;
        assert_eq!(app.call("POST", JOBS, Some(&job("slow", "slow"))).await.status, 201);
        let child = until("the inspection runs", async || std::fs::read_to_string(&pid).ok()).await;
        let runs = || Path::new("/proc").join(child.trim()).join("exe").exists();
        assert!(runs());
        let known = std::fs::read_to_string(&seen).unwrap();
        let names: Vec<&str> = known.lines().filter_map(|line| line.split('=').next()).collect();
        // The shell adds some of its own.
        let allowed = ["MALLOC_ARENA_MAX", "RAYON_NUM_THREADS", "LD_LIBRARY_PATH", "PWD", "SHLVL", "_", "OLDPWD"];
        assert!(names.iter().all(|name| allowed.contains(name)), "{known}");
        pool.drain().await;
        until("the inspection is gone", async || (!runs()).then_some(())).await;
        assert_eq!(get(&app, JOBS, "slow").await.json()["status"], "InProgress", "another importer takes it up");
        app
    });
}

#[test]
fn an_inspection_ends_with_whoever_started_it_and_within_its_processor_time() {
    use std::process::{Command, Stdio};
    // Every part backtracks for a while over the text that each tokenizer is tried with.
    let slow =
        json!({ "type": "Replace", "pattern": { "Regex": "(?=(.*)(.*)(.*)(.*)(.*)(.*)(.*)\\1Q)." }, "content": "" });
    let mut tokenizer: Value = serde_json::from_str(&words(10)).unwrap();
    // As many as a tokenizer may have: several seconds on a quick processor, where one is allowed.
    let list = json!({ "type": "Sequence", "normalizers": vec![slow; 62] });
    tokenizer["normalizer"] = json!({ "type": "Sequence", "normalizers": vec![list; 4] });
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture("llama")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let inspection = |seconds: &str| {
        Command::new(env!("CARGO_BIN_EXE_tunesmith"))
            .args(["inspect-model", "--memory", "1000000000", "--seconds", seconds, "--dir"])
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut spinning = inspection("1");
    let held = spinning.stdin.take();
    let status = spinning.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(24), "{status}");
    drop(held);
    let mut orphan = inspection("600");
    drop(orphan.stdin.take());
    assert_eq!(orphan.wait().unwrap().code(), Some(1));
}

#[test]
fn the_owner_of_a_failed_job_does_not_learn_where_the_service_keeps_its_files() {
    with_worker(&[], async |app| {
        let folder = app.data_dir().parent().unwrap().to_path_buf();
        let shard = "model-00002-of-00003.safetensors";
        std::fs::remove_file(folder.join("models").join(TINY).join(shard)).unwrap();
        app.create("holes").await;
        let ended = settled(&app, "/model-customization-jobs", "holes", "status", "InProgress").await;
        let message = ended["failureMessage"].as_str().unwrap();
        assert!(message.contains(shard) && !message.contains(&*folder.to_string_lossy()), "{message}");
        // An adapter that does not fit is measured against a base, whose place is nobody's business either.
        put_adapter(&app, "misfit", "tunesmith.starter-v1:0").await;
        let message = custom_failure(&app, "misfit", "misfit").await;
        assert!(!message.contains('/') || message.contains("s3://"), "{message}");
        assert!(!message.contains(&*folder.to_string_lossy()), "{message}");
        app
    });
}
