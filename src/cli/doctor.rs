//! `tunesmith doctor`: what the service stands on, as a table, without starting it.

use serde_json::json;

use crate::config::{Config, Role};
use crate::error::{Error, Result};
use crate::service::checks::{self, Check, Verdict};

#[derive(clap::Args)]
pub(super) struct Doctor {
    #[command(flatten)]
    config: Config,

    /// What the process would do
    #[arg(long, env = "TUNESMITH_ROLE", value_enum, default_value = "all")]
    role: Role,

    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(super) async fn run(self) -> Result<()> {
        let config = self.config.checked()?;
        let checks = checks::all(&config, self.role).await;
        let failed = checks.iter().filter(|check| check.verdict == Verdict::Fail).count();
        if self.json {
            println!("{:#}", json!({ "ok": failed == 0, "checks": checks }));
        } else {
            print!("{}", table(&checks));
        }
        match failed {
            0 => Ok(()),
            1 => Err(Error::validation("1 check failed")),
            _ => Err(Error::validation(format!("{failed} checks failed"))),
        }
    }
}

fn table(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Check { name, verdict, found, advice, .. } in checks {
        let verdict = match verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
        };
        text.push_str(&format!("{verdict}  {name:width$}  {found}\n"));
        if let Some(advice) = advice {
            text.push_str(&format!("      {:width$}  → {advice}\n", ""));
        }
    }
    text
}
