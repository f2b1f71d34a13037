//! `tunesmith demo`: from nothing to a custom model by the same calls that any client makes. The service
//! starts in this process on embedded defaults, tickets go to its S3 server, a job is created over HTTP,
//! and both models answer tickets that training never saw.

mod client;
mod progress;
mod report;
mod tickets;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use hyper::Method;
use serde_json::{Value, json};

use self::client::Client;
use self::progress::Display;
use self::report::ByHand;
use self::tickets::Ticket;
use crate::clock::Clock;
use crate::config::{Config, InspectionSettings, MemorySettings, Role, ServingSettings};
use crate::error::{Error, Kind, Result};
use crate::models::starter;
use crate::objects::{Put, Uri};
use crate::service::Service;
use crate::store;
use crate::train::TuningMethod;

/// Data and outputs lie here.
const BUCKET: &str = "tunesmith-demo";

/// So that the same command shows the same; all else is the starter's own default for the tuning method, and
/// with LoRA two cores are done within a minute.
const SEED: &str = "7";

/// The longest expected answer takes about sixty tokens.
const MAX_TOKENS: u32 = 96;

/// How many tickets are asked at a time.
const AT_A_TIME: usize = 2;

/// How many held-out tickets are shown in full.
const SHOWN: usize = 3;

#[derive(clap::Args)]
pub(super) struct Demo {
    /// Folder of the demo's database, objects and keys
    #[arg(long, env = "TUNESMITH_DATA_DIR", default_value = "./data/demo")]
    data_dir: PathBuf,

    /// Address of the API; a free port is taken when this one is in use
    #[arg(long, env = "TUNESMITH_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    /// Address of the embedded S3 server; a free port is taken when this one is in use
    #[arg(long, env = "TUNESMITH_S3_LISTEN", default_value = "127.0.0.1:9000")]
    s3_listen: SocketAddr,

    /// How the model is tuned
    #[arg(long, default_value = TuningMethod::NAMES[0], value_parser = TuningMethod::NAMES)]
    tuning_method: String,

    /// A hyperparameter in place of its default, such as loraRank=8; may be given more than once
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = super::hyper_parameter)]
    set: Vec<(String, String)>,

    /// Afterwards, distill: the tuned model answers the training tickets, and a second model learns from that alone
    #[arg(long)]
    distill: bool,
}

impl Demo {
    pub(super) async fn run(self) -> Result<()> {
        let clock = Clock::system();
        let config = self.config()?;
        println!("Starting Tunesmith in {} …", config.data_dir.display());
        let service = Service::start(config, Role::All).await?;
        let outcome = self.journey(&service, &clock).await;
        service.stop().await;
        outcome
    }

    /// Embedded defaults, whatever the environment says about other databases and stores.
    fn config(&self) -> Result<Config> {
        Config {
            #[cfg(feature = "fault-points")]
            fault_points: None,
            listen: free(self.listen)?,
            data_dir: self.data_dir.clone(),
            database_url: None,
            s3_endpoint: None,
            s3_access_key: None,
            s3_secret_key: None,
            cache_size: None,
            probe_bucket: None,
            s3_listen: free(self.s3_listen)?,
            s3_domain: Vec::new(),
            cors_origins: Vec::new(),
            devices: "cpu".into(),
            memory: MemorySettings::default(),
            serving: ServingSettings::default(),
            inspection: InspectionSettings::default(),
            models: None,
            root_access_key: None,
            root_secret_key: None,
            root_bearer_key: None,
            account_id: "000000000000".into(),
            region: "us-east-1".into(),
            roles: None,
            accounts: None,
            rate_limit: None,
            rate_burst: None,
            lambda_endpoint: None,
            lambda_timeout_seconds: 120,
            lease_seconds: 60,
            grace_seconds: 30,
            stall_seconds: 30,
        }
        .checked()
    }

    async fn journey(&self, service: &Service, clock: &Clock) -> Result<()> {
        let app = &service.app;
        let address = service.api.ok_or_else(|| Error::internal(anyhow::anyhow!("the service has no API")))?;
        let key = service.keys.as_ref().and_then(|keys| keys.bearer_key.clone());
        let key = key.ok_or_else(|| {
            Error::validation("The root keys of this data folder are not at hand: choose another --data-dir")
        })?;
        let client = Client { address, key };
        let tickets = tickets::held_out()?;

        println!("Uploading {} tickets to s3://{BUCKET}/data/ …", tickets::TRAIN.lines().count());
        app.objects.ensure_bucket(BUCKET).await?;
        app.objects.put_bytes(&Uri::new(BUCKET, "data/train.jsonl"), tickets::TRAIN, &Put::default()).await?;
        app.objects.put_bytes(&Uri::new(BUCKET, "data/validation.jsonl"), tickets::VALIDATION, &Put::default()).await?;

        println!("Asking the base model about {} tickets that training will not see …", tickets.len());
        let base = ask_all(&client, starter::ID, &tickets).await?;

        let id = clock.id();
        let (job, model) = (format!("demo-{id}"), format!("ticket-router-{id}"));
        let begun = clock.monotonic();
        let done = run_job(&client, service, begun, &self.request(&job, &model)).await?;
        let seconds = begun.elapsed().as_secs_f64();
        let loss = &done["trainingMetrics"]["trainingLoss"];
        println!("Completed {seconds:.1} s after create; training loss {loss}.");

        println!("Asking the tuned model the same …");
        let tuned = ask_all(&client, &model, &tickets).await?;
        let (before, after) = (report::exact(&tickets, &base), report::exact(&tickets, &tuned));
        print!("\n{}", report::table(&tickets, &base, &tuned, SHOWN));
        let percent = |right: usize| 100.0 * right as f64 / tickets.len() as f64;
        println!("\nExact answers on {} held-out tickets:", tickets.len());
        println!("  base   {before:>4}  {:>5.1} %", percent(before));
        println!("  tuned  {after:>4}  {:>5.1} %", percent(after));
        println!("  create to Completed in {seconds:.1} s");

        let suffix = done["jobArn"].as_str().and_then(|arn| arn.rsplit('/').next()).unwrap_or_default();
        let (what, folder) = match self.tuning_method.as_str() {
            "full" => ("The tuned model, as transformers loads it", "model"),
            "adapter" => ("The adapter, as the library adapters loads it", "adapter"),
            _ => ("The adapter, as peft loads it", "adapter"),
        };
        println!("\n{what}:\n  s3://{BUCKET}/outputs/model-customization-job-{suffix}/{folder}/\n");
        let by_hand = ByHand {
            data_dir: &app.config.data_dir.display().to_string(),
            api: &format!("http://{address}"),
            s3: &format!("http://{}", app.config.s3_listen),
            region: &app.config.region,
            bucket: BUCKET,
            model: &model,
            ticket: &tickets[0],
            hyper_parameters: &self.hyper_parameters().to_string(),
        };
        print!("{}", by_hand.text());
        // A demo that does not show what it promises has failed, however smoothly it ran.
        if after <= before {
            return Err(Error::new(Kind::Model, format!("tuning did not help: {before} right before, {after} after")));
        }
        if self.distill {
            let teacher = done["outputModelArn"].as_str().unwrap_or_default();
            let student = self.distill(&client, service, clock, teacher, &tickets).await?;
            println!("  teacher {after:>4}  {:>5.1} %", percent(after));
            println!("  student {student:>4}  {:>5.1} %, never shown a right answer", percent(student));
            if student <= before {
                return Err(Error::new(Kind::Model, format!("distillation did not help: {student} right after it")));
            }
        }
        Ok(())
    }

    /// Teaches the base model what `teacher` says to the training tickets; how many answers are right then.
    async fn distill(
        &self,
        client: &Client,
        service: &Service,
        clock: &Clock,
        teacher: &str,
        tickets: &[Ticket],
    ) -> Result<usize> {
        let id = clock.id();
        let (job, model) = (format!("demo-distill-{id}"), format!("student-{id}"));
        let mut request = self.request(&job, &model);
        request["customizationType"] = json!("DISTILLATION");
        let config = json!({"teacherModelIdentifier": teacher, "maxResponseLengthForInference": MAX_TOKENS});
        request["customizationConfig"] = json!({"distillationConfig": {"teacherModelConfig": config}});
        let begun = clock.monotonic();
        println!("\nNow the tuned model teaches: it answers the training tickets, and another model learns from that.");
        run_job(client, service, begun, &request).await?;
        println!("Completed {:.1} s after create. Asking the student the same …", begun.elapsed().as_secs_f64());
        let answers = ask_all(client, &model, tickets).await?;
        println!("\nExact answers on {} held-out tickets:", tickets.len());
        Ok(report::exact(tickets, &answers))
    }

    fn request(&self, job: &str, model: &str) -> Value {
        json!({
            "jobName": job,
            "customModelName": model,
            "roleArn": "arn:aws:iam::000000000000:role/tuner",
            "baseModelIdentifier": starter::ID,
            "trainingDataConfig": {"s3Uri": format!("s3://{BUCKET}/data/train.jsonl")},
            "validationDataConfig": {"validators": [{"s3Uri": format!("s3://{BUCKET}/data/validation.jsonl")}]},
            "outputDataConfig": {"s3Uri": format!("s3://{BUCKET}/outputs/")},
            "hyperParameters": self.hyper_parameters(),
        })
    }

    fn hyper_parameters(&self) -> Value {
        let own = [("tuningMethod", self.tuning_method.as_str()), ("seed", SEED)];
        let set = self.set.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        own.into_iter().chain(set).map(|(name, value)| (name.to_string(), Value::from(value))).collect()
    }
}

/// The address itself, or a free port of the same host when something listens there already.
fn free(wanted: SocketAddr) -> Result<SocketAddr> {
    let bound = TcpListener::bind(wanted).or_else(|_| TcpListener::bind((wanted.ip(), 0))).map_err(|cause| {
        Error::validation(format!("cannot listen on {}: {cause}; choose another with --listen", wanted.ip()))
    })?;
    Ok(bound.local_addr()?)
}

/// Creates a job and follows it.
async fn run_job(client: &Client, service: &Service, begun: std::time::Instant, request: &Value) -> Result<Value> {
    let job = request["jobName"].as_str().unwrap_or_default();
    println!("Creating the customization job {job} …");
    client.call(Method::POST, "/model-customization-jobs", Some(request)).await?;
    watch(client, service, job, begun).await
}

/// Follows the job until it ends, and gives its last description.
async fn watch(client: &Client, service: &Service, job: &str, begun: std::time::Instant) -> Result<Value> {
    let app = &service.app;
    let mut display = Display::new();
    let path = format!("/model-customization-jobs/{job}");
    let done = loop {
        let description = client.call(Method::GET, &path, None).await?;
        if let Some(row) = store::jobs::find(&app.db, &app.config.account_id, job).await?
            && let Some(progress) = &row.progress
        {
            display.show(progress, begun.elapsed());
        }
        if description["status"] != "InProgress" {
            break description;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    };
    display.finish();
    if done["status"] == "Completed" {
        return Ok(done);
    }
    let why = done["failureMessage"].as_str().unwrap_or("no reason was given");
    Err(Error::new(Kind::Model, format!("the job ended as {}: {why}", done["status"])))
}

/// Every ticket's answer, in order.
async fn ask_all(client: &Client, model: &str, tickets: &[Ticket]) -> Result<Vec<String>> {
    let path = format!("/model/{}/converse", model.replace(':', "%3A"));
    futures::stream::iter(tickets).map(|ticket| ask(client, &path, ticket)).buffered(AT_A_TIME).try_collect().await
}

async fn ask(client: &Client, path: &str, ticket: &Ticket) -> Result<String> {
    let request = json!({
        "system": [{"text": ticket.system}],
        "messages": [{"role": "user", "content": [{"text": ticket.text}]}],
        "inferenceConfig": {"maxTokens": MAX_TOKENS, "temperature": 0.0},
    });
    let answer = client.call(Method::POST, path, Some(&request)).await?;
    let text = answer["output"]["message"]["content"][0]["text"].as_str();
    text.map(str::to_string).ok_or_else(|| Error::new(Kind::Model, format!("Converse answered without text: {answer}")))
}
