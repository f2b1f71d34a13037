//! Every operation of the document, asked by one account about everything that another has. An operation that is not
//! named here fails the test, so that none is forgotten.

use serde_json::{Value, json};
use tunesmith::worker::Pool;

use super::{own_bucket, own_job, status};
use crate::support::{TINY, TestApp, segment, until, with_app};

/// What an account has, by ARN and by name.
#[derive(Clone)]
struct Things {
    job: [String; 2],
    import: [String; 2],
    model: [String; 2],
    imported: [String; 2],
    deployment: [String; 2],
    throughput: [String; 2],
}

impl Things {
    fn all(&self) -> [&[String; 2]; 6] {
        [&self.job, &self.import, &self.model, &self.imported, &self.deployment, &self.throughput]
    }

    /// Names of the same form that nothing has.
    fn absent(&self) -> Self {
        let absent = |pair: &[String; 2]| {
            let [arn, name] = pair;
            [format!("{}absentabsent", &arn[..arn.len() - 12]), name.chars().rev().collect()]
        };
        Self {
            job: absent(&self.job),
            import: absent(&self.import),
            model: absent(&self.model),
            imported: absent(&self.imported),
            deployment: absent(&self.deployment),
            throughput: absent(&self.throughput),
        }
    }

    /// The text without what names them.
    fn hidden(&self, text: &str) -> String {
        let mut text = text.to_string();
        for [arn, name] in self.all() {
            text = text.replace(arn, "ARN").replace(name, "NAME");
        }
        text
    }
}

async fn made_by_the_first(app: &TestApp) -> Things {
    let model = app.model("first").await;
    let pool = Pool::start(app.service.app.clone()).await.unwrap();
    let objects = &app.service.app.objects;
    for entry in std::fs::read_dir(crate::support::fixture("models/llama")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let uri = tunesmith::objects::Uri::parse(&format!("s3://tuning/llama/{name}")).unwrap();
        objects.put_file(&uri, &path, &tunesmith::objects::Put::default()).await.unwrap();
    }
    let source = json!({ "s3DataSource": { "s3Uri": "s3://tuning/llama" } });
    let role = "arn:aws:iam::000000000000:role/importer";
    let body = json!({ "jobName": "alpha-import", "importedModelName": "alpha-brought", "roleArn": role, "modelDataSource": source });
    let import = app.call("POST", "/model-import-jobs", Some(&body)).await.json();
    let import = import["jobArn"].as_str().unwrap().to_string();
    let done = until("the import ends", async || {
        let job = app.call("GET", "/model-import-jobs/alpha-import", None).await.json();
        (job["status"] != "InProgress").then_some(job)
    })
    .await;
    pool.drain().await;
    let deployment = json!({ "modelDeploymentName": "alpha-serves", "modelArn": model.arn });
    let deployment = app.call("POST", "/model-customization/custom-model-deployments", Some(&deployment)).await.json();
    let throughput = json!({ "provisionedModelName": "alpha-places", "modelId": model.arn, "modelUnits": 1 });
    let throughput = app.call("POST", "/provisioned-model-throughput", Some(&throughput)).await.json();
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{done} {deployment} {throughput}")).to_string();
    Things {
        job: [app.create("alpha-job").await, "alpha-job".into()],
        import: [import, "alpha-import".into()],
        model: [model.arn, model.name],
        imported: [text(&done["importedModelArn"]), "alpha-brought".into()],
        deployment: [text(&deployment["customModelDeploymentArn"]), "alpha-serves".into()],
        throughput: [text(&throughput["provisionedModelArn"]), "alpha-places".into()],
    }
}

/// What the other account may ask about `things` with an operation: targets and bodies.
fn requests(app: &TestApp, operation: &str, path: &str, things: &Things) -> Vec<(String, Option<Value>)> {
    let at = |ids: &[String; 2], body: Option<Value>| {
        let (start, rest) = path.split_once('{').unwrap();
        let rest = rest.split_once('}').unwrap().1;
        ids.iter().map(|id| (format!("{start}{}{rest}", segment(id)), body.clone())).collect::<Vec<_>>()
    };
    let every = || things.all().into_iter().flatten();
    let posts = |bodies: Vec<Value>| bodies.into_iter().map(|body| (path.to_string(), Some(body))).collect::<Vec<_>>();
    let messages = json!([{ "role": "user", "content": [{ "text": "a" }] }]);
    let runtime =
        |body: Value| things.all().into_iter().flat_map(|ids| at(ids, Some(body.clone()))).collect::<Vec<_>>();
    match operation {
        "GetModelCustomizationJob" | "StopModelCustomizationJob" => at(&things.job, None),
        "GetModelImportJob" => at(&things.import, None),
        "GetCustomModel" | "DeleteCustomModel" => at(&things.model, None),
        "GetImportedModel" | "DeleteImportedModel" => at(&things.imported, None),
        "GetCustomModelDeployment" | "DeleteCustomModelDeployment" => at(&things.deployment, None),
        "UpdateCustomModelDeployment" => at(&things.deployment, Some(json!({ "modelArn": things.model[0] }))),
        "GetProvisionedModelThroughput" | "DeleteProvisionedModelThroughput" => at(&things.throughput, None),
        "UpdateProvisionedModelThroughput" => [
            at(&things.throughput, Some(json!({ "desiredProvisionedModelName": "taken-over" }))),
            at(&things.throughput, Some(json!({ "desiredModelId": things.model[0] }))),
        ]
        .concat(),
        "GetFoundationModel" | "GetFoundationModelAvailability" => {
            [at(&things.model, None), at(&things.imported, None)].concat()
        }
        "CreateCustomModelDeployment" => posts(
            [&things.model[0], &things.imported[0]]
                .map(|arn| json!({ "modelDeploymentName": "over-the-wall", "modelArn": arn }))
                .to_vec(),
        ),
        "CreateProvisionedModelThroughput" => posts(
            [&things.model, &things.imported, &things.deployment]
                .into_iter()
                .flatten()
                .map(|id| json!({ "provisionedModelName": "over-the-wall", "modelId": id, "modelUnits": 1 }))
                .collect(),
        ),
        "CreateModelCustomizationJob" => {
            let further = [&things.model, &things.imported].into_iter().flatten().map(|id| {
                let mut job = own_job(app, "over-the-wall");
                job["baseModelIdentifier"] = json!(id);
                job
            });
            let taught = [&things.model, &things.imported, &things.deployment].into_iter().flatten().map(|id| {
                let mut job = own_job(app, "taught");
                job["customizationType"] = json!("DISTILLATION");
                let teacher = json!({ "teacherModelConfig": { "teacherModelIdentifier": id } });
                job["customizationConfig"] = json!({ "distillationConfig": teacher });
                job
            });
            posts(further.chain(taught).collect())
        }
        "Converse" | "ConverseStream" => runtime(json!({ "messages": messages })),
        "CountTokens" => runtime(json!({ "input": { "converse": { "messages": messages } } })),
        "InvokeModel" | "InvokeModelWithResponseStream" => runtime(json!({ "prompt": "a", "max_gen_len": 1 })),
        "TagResource" => {
            posts(every().map(|id| json!({ "resourceARN": id, "tags": [{ "key": "k", "value": "v" }] })).collect())
        }
        "UntagResource" => posts(every().map(|id| json!({ "resourceARN": id, "tagKeys": ["k"] })).collect()),
        "ListTagsForResource" => posts(every().map(|id| json!({ "resourceARN": id })).collect()),
        // Their places in object storage are walked member by member, and they name no resource.
        "CreateModelImportJob" | "CreateCustomModel" => Vec::new(),
        // Lists are asked below; foundation models belong to nobody.
        list if list.starts_with("List") => Vec::new(),
        other => panic!("{other}: say here how another account would ask about what is not its own"),
    }
}

#[test]
fn another_account_finds_nothing_of_the_firsts_with_any_operation() {
    with_app(async |app| {
        let things = made_by_the_first(&app).await;
        let absent = things.absent();
        let stranger = app.stranger().await;
        own_bucket(&app, &stranger).await;
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/openapi.json");
        let document: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut asked = 0;
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let Some(name) = operation["operationId"].as_str() else { continue };
                let method = method.to_uppercase();
                if method == "GET" && name.starts_with("List") && name != "ListFoundationModels" {
                    let list = app.call_as(&stranger, "GET", path, None).await;
                    assert_eq!(list.status, 200, "{path}: {}", list.text());
                    let lists = list.json();
                    let empty = |value: &Value| value.as_array().is_none_or(Vec::is_empty);
                    assert!(lists.as_object().unwrap().values().all(empty), "{path}: {lists}");
                }
                let (there, nowhere) = (requests(&app, name, path, &things), requests(&app, name, path, &absent));
                for ((target, body), (other, no_body)) in there.into_iter().zip(nowhere) {
                    let there = app.call_as(&stranger, &method, &target, body.as_ref()).await;
                    let nowhere = app.call_as(&stranger, &method, &other, no_body.as_ref()).await;
                    let what = format!("{name} {target} {body:?}");
                    assert!((400..500).contains(&there.status), "{what}: {} {}", there.status, there.text());
                    assert_eq!((there.status, there.error()), (nowhere.status, nowhere.error()), "{what}");
                    assert_eq!(things.hidden(&there.text()), absent.hidden(&nowhere.text()), "{what}");
                    asked += 1;
                }
            }
        }
        assert!(asked > 80, "{asked}");

        // And nothing of it has changed.
        assert_eq!(status(&app, &app.root, "alpha-job").await["status"], "InProgress");
        for (collection, id) in [
            ("/custom-models", &things.model[0]),
            ("/imported-models", &things.imported[0]),
            ("/model-import-jobs", &things.import[0]),
            ("/model-customization/custom-model-deployments", &things.deployment[0]),
            ("/provisioned-model-throughput", &things.throughput[0]),
        ] {
            let still = app.call("GET", &format!("{collection}/{}", segment(id)), None).await;
            assert_eq!(still.status, 200, "{id}: {}", still.text());
            let tags = app.call("POST", "/listTagsForResource", Some(&json!({ "resourceARN": id }))).await.json();
            assert_eq!(tags["tags"], json!([]), "{id}");
        }
        assert_eq!(app.call_as(&stranger, "GET", &format!("/foundation-models/{TINY}"), None).await.status, 200);
        app
    });
}
