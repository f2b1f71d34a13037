//! The grader against a real server on a socket that answers as it is told.

use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::routing::post;
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;

use super::*;

const ARN: &str = "arn:aws:lambda:us-east-1:000000000000:function:grader";

type Answer = Box<dyn Fn(usize, &[Value]) -> (StatusCode, HeaderMap, String) + Send>;

/// What the server saw, and how it answers the n-th invocation.
struct Function {
    seen: Mutex<Vec<(String, HeaderMap, Vec<Value>)>>,
    answer: Mutex<Answer>,
}

async fn invoked(
    State(function): State<Arc<Function>>,
    uri: Uri,
    headers: HeaderMap,
    Json(events): Json<Vec<Value>>,
) -> (StatusCode, HeaderMap, String) {
    let mut seen = function.seen.lock().unwrap();
    // A function that is slow holds up its thread; whoever keeps the time goes to another.
    let reply = tokio::task::block_in_place(|| (function.answer.lock().unwrap())(seen.len(), &events));
    seen.push((uri.path().to_string(), headers, events));
    reply
}

fn scores(events: &[Value], score: impl Fn(&Value) -> Value) -> (StatusCode, HeaderMap, String) {
    let entries: Vec<Value> = events
        .iter()
        .map(|event| {
            json!({"id": event["id"], "aggregate_reward_score": score(event),
                "metrics_list": [{"name": "length", "value": 3, "type": "Metric"}]})
        })
        .collect();
    (StatusCode::OK, HeaderMap::new(), Value::from(entries).to_string())
}

/// What a function saw of a call: its path, its headers, and the samples.
type Seen = (String, HeaderMap, Vec<Value>);

/// Grades these outputs by a function that answers so; the grades, and what the function saw.
fn grade(
    outputs: &[&str],
    timeout: Duration,
    answer: impl Fn(usize, &[Value]) -> (StatusCode, HeaderMap, String) + Send + 'static,
) -> (Vec<Graded>, Vec<Seen>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let function = Arc::new(Function { seen: Mutex::default(), answer: Mutex::new(Box::new(answer)) });
    let router = Router::new().route("/{*path}", post(invoked)).with_state(Arc::clone(&function));
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(router.clone());
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    let credentials = Some(("AKID".to_string(), "secret".to_string()));
    let endpoint = LambdaEndpoint { url, credentials, region: "eu-central-1".into(), timeout };
    let mut lambda = Lambda::new(endpoint, ARN, Clock::system(), runtime.handle().clone());
    lambda.pause = Duration::from_millis(1);
    let item = json!({"reference_answer": "yes", "difficulty": 2});
    let messages: Vec<Vec<Value>> = outputs
        .iter()
        .map(|output| vec![json!({"role": "user", "content": "?"}), json!({"role": "assistant", "content": output})])
        .collect();
    let ids: Vec<String> = (0..outputs.len()).map(|n| format!("sample-{n}")).collect();
    let samples: Vec<Sample<'_>> = (0..outputs.len())
        .map(|n| Sample { id: &ids[n], messages: &messages[n], output: outputs[n], item: item.as_object().unwrap() })
        .collect();
    let grades = lambda.grade(&samples, &StopFlag::default()).unwrap();
    let seen = std::mem::take(&mut *function.seen.lock().unwrap());
    (grades, seen)
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_function_is_invoked_as_aws_documents_it_and_its_grades_are_taken() {
    let (grades, seen) = grade(&["a", "bb"], MINUTE, |_, events| {
        scores(events, |event| json!(event["messages"][1]["content"].as_str().unwrap().len() as f64 / 2.0))
    });
    let length = ("length".to_string(), 3.0);
    let expected = [0.5, 1.0].map(|reward| Ok(Grade { reward, parts: vec![length.clone()] }));
    assert_eq!(grades, expected);
    let [(path, headers, events)] = seen.as_slice() else { panic!("{} invocations", seen.len()) };
    let encoded = ARN.replace(':', "%3A");
    assert_eq!(*path, format!("/2015-03-31/functions/{encoded}/invocations"));
    let authorization = headers["authorization"].to_str().unwrap();
    assert!(authorization.starts_with("AWS4-HMAC-SHA256 Credential=AKID/"), "{authorization}");
    assert!(authorization.contains("/eu-central-1/lambda/aws4_request"), "{authorization}");
    assert_eq!(
        events[0],
        json!({"id": "sample-0", "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a"}],
            "metadata": {"reference_answer": "yes", "difficulty": 2}, "reference_answer": "yes", "difficulty": 2})
    );
}

#[test]
fn a_function_that_fails_at_first_is_asked_again() {
    for failure in 0..4 {
        let (grades, seen) =
            grade(&["a"], Duration::from_millis(if failure == 3 { 300 } else { 60_000 }), move |n, events| {
                if n > 0 {
                    return scores(events, |_| json!(1.0));
                }
                let mut headers = HeaderMap::new();
                match failure {
                    0 => (StatusCode::SERVICE_UNAVAILABLE, headers, String::new()),
                    1 => {
                        headers.insert("x-amz-function-error", "Unhandled".parse().unwrap());
                        (StatusCode::OK, headers, r#"{"errorMessage": "KeyError"}"#.into())
                    }
                    2 => (StatusCode::OK, headers, "nonsense".into()),
                    _ => {
                        std::thread::sleep(Duration::from_millis(400));
                        scores(events, |_| json!(0.0))
                    }
                }
            });
        assert_eq!(grades[0].as_ref().unwrap().reward, 1.0, "failure {failure}");
        assert_eq!(seen.len(), 2, "failure {failure}");
    }
}

#[test]
fn one_answer_that_cannot_be_graded_costs_only_its_own_grade() {
    // Python's json.dumps writes NaN, which is not JSON: the whole reply is lost.
    let (grades, seen) = grade(&["good", "bad", "good"], MINUTE, |_, events| {
        let (status, headers, body) =
            scores(events, |event| if event["messages"][1]["content"] == "bad" { json!("NaN") } else { json!(1.0) });
        (status, headers, body.replace("\"NaN\"", "NaN"))
    });
    assert_eq!(grades.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    assert!(grades[1].as_ref().unwrap_err().contains("not JSON"), "{grades:?}");
    assert_eq!(seen.len(), 1 + 1 + 3);
}

#[test]
fn entries_that_say_nothing_are_told_sample_by_sample() {
    let (grades, _) = grade(&["a", "b", "c"], MINUTE, |_, events| {
        let entries: Vec<Value> = events
            .iter()
            .filter_map(|event| match event["messages"][1]["content"].as_str()? {
                "a" => Some(json!({"id": event["id"], "aggregate_reward_score": "high"})),
                "b" => None,
                _ => Some(json!({"id": event["id"], "aggregate_reward_score": 2})),
            })
            .collect();
        (StatusCode::OK, HeaderMap::new(), Value::from(entries).to_string())
    });
    assert!(grades[0].as_ref().unwrap_err().contains("no number as aggregate_reward_score"));
    assert!(grades[1].as_ref().unwrap_err().contains("no entry with its id"));
    assert_eq!(grades[2], Ok(Grade { reward: 2.0, parts: vec![] }));
}

#[test]
fn an_endpoint_that_is_not_there_is_said_and_a_stop_ends_the_wait() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let endpoint = LambdaEndpoint {
        url: "http://127.0.0.1:9".into(),
        credentials: None,
        region: "us-east-1".into(),
        timeout: MINUTE,
    };
    let mut lambda = Lambda::new(endpoint, ARN, Clock::system(), runtime.handle().clone());
    lambda.pause = Duration::from_millis(1);
    let item = Map::new();
    let sample = Sample { id: "1", messages: &[], output: "", item: &item };
    let grades = lambda.grade(&[sample], &StopFlag::default()).unwrap();
    assert!(grades[0].as_ref().unwrap_err().contains("http://127.0.0.1:9 does not answer"), "{grades:?}");
    lambda.pause = MINUTE;
    let stop = StopFlag::default();
    stop.raise();
    assert!(lambda.grade(&[sample], &stop).is_err());
}

#[test]
fn a_whole_address_is_used_as_it_is() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let url = "http://localhost:9001/2015-03-31/functions/function/invocations".to_string();
    let endpoint = LambdaEndpoint { url: url.clone(), credentials: None, region: "x".into(), timeout: MINUTE };
    assert_eq!(Lambda::new(endpoint, ARN, Clock::system(), runtime.handle().clone()).address, url);
}
