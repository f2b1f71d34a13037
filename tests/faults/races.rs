//! The same request token is the same thing, whatever retries and races, for everything that takes a token.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::process::{House, on_each, until};
use super::tiny;
use crate::support::promise::Promise;

const CLIENTS: usize = 64;

on_each! {
    async fn sixty_four_clients_with_one_token_make_one_of_each_kind(house: House) {
        let mut promise = Promise::new(5, "one_token_of_each_kind", house.on_what());
        let process = house.start(&["serve"]);
        house.upload_data().await;
        let parent = house.create(&house.request("parent", 20)).await;
        let model = house.completed(&parent).await.output_model_arn.unwrap();
        process.kill();
        // What is made stays as it was made: nothing works on it.
        let _api = house.start(&["serve", "--role", "api"]);
        until("the API answers", async || house.client().try_call("GET", "/custom-models", None).await).await;
        house.put("model/config.json", "{}").await;
        let import = json!({
            "jobName": "import", "importedModelName": "imported", "roleArn": "arn:aws:iam::111111111111:role/importer",
            "modelDataSource": {"s3DataSource": {"s3Uri": format!("s3://{}/model/", house.bucket)}},
            "clientRequestToken": "token-import",
        });
        let deployment = json!({"modelDeploymentName": "served", "modelArn": model, "clientRequestToken": "token-served"});
        let throughput = json!({
            "provisionedModelName": "provisioned", "modelId": tiny::MODEL, "modelUnits": 1,
            "clientRequestToken": "token-provisioned",
        });
        let kinds: [(&str, Value, &str, &str); 4] = [
            ("/model-customization-jobs", house.request("race", 20), "jobArn", "outputDataConfig"),
            ("/model-import-jobs", import, "jobArn", "roleArn"),
            ("/model-customization/custom-model-deployments", deployment, "customModelDeploymentArn", "description"),
            ("/provisioned-model-throughput", throughput, "provisionedModelArn", "modelUnits"),
        ];
        let mut made = Vec::new();
        for (path, body, arn, changed) in kinds {
            // The service model gives deployments and throughput no ConflictException.
            let refusal = if arn == "jobArn" { "ConflictException" } else { "ValidationException" };
            let calls: Vec<_> = (0..CLIENTS)
                .map(|_| {
                    let (client, body) = (house.client(), body.clone());
                    tokio::spawn(async move { client.try_call("POST", path, Some(&body)).await.expect("a reply") })
                })
                .collect();
            let mut arns = BTreeSet::new();
            for call in calls {
                let reply = call.await.unwrap();
                assert!(reply.status < 300, "{path}: {} {}", reply.status, reply.text());
                arns.insert(reply.json()[arn].as_str().unwrap().to_string());
            }
            assert_eq!(arns.len(), 1, "{path}: {arns:?}");
            let mut other = body.clone();
            other[changed] = match changed {
                "outputDataConfig" => json!({"s3Uri": format!("s3://{}/elsewhere/", house.bucket)}),
                "roleArn" => json!("arn:aws:iam::111111111111:role/another"),
                "modelUnits" => json!(2),
                _ => json!("changed"),
            };
            let reply = house.client().call("POST", path, Some(&other)).await;
            assert_eq!((reply.status, reply.error()), (400, refusal), "{path}: {}", reply.text());
            made.push(path.rsplit('/').next().unwrap());
        }
        promise.tried(format!("{CLIENTS} clients at once with one token for each of {}", made.join(", ")));
        promise.found("one of each, 64 equal ARNs each; the same token with another body is refused");
        promise.held();
    }
}
