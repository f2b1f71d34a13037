//! What the demo shows at the end: the answers of both models side by side, and the lines that do the same
//! by hand.

use super::tickets::Ticket;

/// Text wider than this is continued on the next line.
const WIDTH: usize = 92;

/// How many answers are right, byte for byte.
pub(super) fn exact(tickets: &[Ticket], answers: &[String]) -> usize {
    tickets.iter().zip(answers).filter(|(ticket, answer)| ticket.expected == answer.trim()).count()
}

/// A few tickets with the answer that was wanted and the answers that came.
pub(super) fn table(tickets: &[Ticket], base: &[String], tuned: &[String], rows: usize) -> String {
    let rule = format!("  {:─<8}┼{:─<width$}\n", "", "", width = WIDTH + 1);
    let mut text = rule.clone();
    for ((ticket, base), tuned) in tickets.iter().zip(base).zip(tuned).take(rows) {
        for (name, value) in [("ticket", &ticket.text), ("wanted", &ticket.expected), ("base", base), ("tuned", tuned)]
        {
            for (i, line) in wrap(value).iter().enumerate() {
                text += &format!("  {:<8}│ {line}\n", if i == 0 { name } else { "" });
            }
        }
        text += &rule;
    }
    text
}

/// Lines of at most [`WIDTH`] characters, broken at spaces where there are any.
fn wrap(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        for (i, piece) in pieces(word).into_iter().enumerate() {
            let last = lines.len() - 1;
            let used = lines[last].chars().count();
            if used + piece.chars().count() + usize::from(i == 0 && used > 0) > WIDTH {
                lines.push(piece);
                continue;
            }
            if i == 0 && used > 0 {
                lines[last].push(' ');
            }
            lines[last].push_str(&piece);
        }
    }
    lines
}

fn pieces(word: &str) -> Vec<String> {
    word.chars().collect::<Vec<_>>().chunks(WIDTH).map(|piece| piece.iter().collect()).collect()
}

/// Where things are, for the lines that repeat the demo by hand.
pub(super) struct ByHand<'a> {
    /// The folder that the demo kept its data in.
    pub(super) data_dir: &'a str,
    /// `http://…` of the API.
    pub(super) api: &'a str,
    /// `http://…` of the S3 server.
    pub(super) s3: &'a str,
    /// The region of ARNs and signatures.
    pub(super) region: &'a str,
    /// The bucket with data and outputs.
    pub(super) bucket: &'a str,
    /// The tuned model's name.
    pub(super) model: &'a str,
    /// A ticket to ask about.
    pub(super) ticket: &'a Ticket,
    /// The hyperparameters, as JSON.
    pub(super) hyper_parameters: &'a str,
}

impl ByHand<'_> {
    /// The same journey in curl and in boto3.
    pub(super) fn text(&self) -> String {
        let Self { data_dir, api, s3, region, bucket, model, ticket, hyper_parameters } = self;
        let shell = |text: &str| text.replace('\'', "'\\''");
        let ask = serde_json::json!({
            "system": [{"text": ticket.system}],
            "messages": [{"role": "user", "content": [{"text": ticket.text}]}],
            "inferenceConfig": {"temperature": 0.0, "maxTokens": 80},
        });
        let job = serde_json::json!({
            "jobName": "by-hand", "customModelName": "by-hand", "roleArn": "arn:aws:iam::000000000000:role/tuner",
            "baseModelIdentifier": crate::models::starter::ID,
            "trainingDataConfig": {"s3Uri": format!("s3://{bucket}/data/train.jsonl")},
            "outputDataConfig": {"s3Uri": format!("s3://{bucket}/outputs/")},
            "hyperParameters": serde_json::from_str::<serde_json::Value>(hyper_parameters).unwrap_or_default(),
        });
        format!(
            r#"The same by hand. In one terminal:

  tunesmith serve --data-dir {data_dir}

In another, with the keys that the first start wrote to {data_dir}/credentials:

  KEY=$(sed -n 's/^bearer_key = //p' {data_dir}/credentials)
  curl -s {api}/model-customization-jobs -H "authorization: Bearer $KEY" -H 'content-type: application/json' \
    -d '{job}'
  curl -s {api}/model-customization-jobs/by-hand -H "authorization: Bearer $KEY"
  curl -s {api}/model/{model}/converse -H "authorization: Bearer $KEY" -H 'content-type: application/json' \
    -d '{ask}'

Or in Python, with AWS_SHARED_CREDENTIALS_FILE={data_dir}/credentials:

  import boto3
  s3 = boto3.client("s3", endpoint_url="{s3}", region_name="{region}")
  bedrock = boto3.client("bedrock", endpoint_url="{api}", region_name="{region}")
  runtime = boto3.client("bedrock-runtime", endpoint_url="{api}", region_name="{region}")
  s3.upload_file("assets/demo/train.jsonl", "{bucket}", "data/train.jsonl")
  bedrock.create_model_customization_job(jobName="by-hand-2", customModelName="by-hand-2",
      roleArn="arn:aws:iam::000000000000:role/tuner", baseModelIdentifier="{base}",
      trainingDataConfig={{"s3Uri": "s3://{bucket}/data/train.jsonl"}},
      outputDataConfig={{"s3Uri": "s3://{bucket}/outputs/"}}, hyperParameters={hyper_parameters})
  print(bedrock.get_model_customization_job(jobIdentifier="by-hand-2")["status"])
  print(runtime.converse(modelId="{model}", system=[{{"text": "{system}"}}],
      messages=[{{"role": "user", "content": [{{"text": "Where is my tea kettle? Order 48213."}}]}}])["output"])
"#,
            job = shell(&job.to_string()),
            ask = shell(&ask.to_string()),
            base = crate::models::starter::ID,
            system = ticket.system,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(expected: &str) -> Ticket {
        Ticket { system: "Route.".into(), text: "Where is it?".into(), expected: expected.into() }
    }

    #[test]
    fn only_whole_answers_count() {
        let tickets = [ticket("{\"a\":1}"), ticket("{\"a\":1}"), ticket("{\"a\":1}")];
        let answers = ["{\"a\":1}\n", "{\"a\":1} and more", "{\"a\":2}"].map(String::from);
        assert_eq!(exact(&tickets, &answers), 1);
    }

    #[test]
    fn long_text_is_broken_at_spaces_and_nothing_is_lost() {
        let text = format!("{} {}", "word ".repeat(40).trim(), "x".repeat(200));
        let lines = wrap(&text);
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH), "{lines:#?}");
        assert_eq!(lines.concat().replace(' ', ""), text.replace(' ', ""));
    }
}
