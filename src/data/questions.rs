//! Prompts for another model to answer: what distillation reads (source: AWS, "Prepare your training datasets
//! for distillation"). A record is one user's turn, as a conversation or as a prompt; an answer may stand beside
//! it. Once answered it is an ordinary record for fine-tuning.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::json::{self, Member};
use super::jsonl::Fault;
use super::records::{Conversation, Message, Role, alternating, text_of};

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Question {
    /// A text, as [`super::Encoder::text_prompt`] takes it.
    Text(String),
    /// One user's turn, perhaps after a system prompt.
    Turn {
        /// The system prompt.
        system: Option<String>,
        /// What the user says.
        user: String,
    },
}

/// A question, and an answer that stood beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What is asked.
    pub question: Question,
    /// What was answered.
    pub answer: Option<String>,
}

impl Asked {
    /// Reads a line: `{"messages": [user, perhaps assistant]}` with `system` and `schemaVersion` beside it, or
    /// `{"prompt": …}`, perhaps with `completion`.
    ///
    /// # Errors
    /// What is wrong with the line, and where.
    pub fn parse(line: &str) -> Result<Self, Fault> {
        let root = json::parse(line)?;
        let members = root.members("")?;
        let member = |name: &str| members.iter().find(|member| member.name == name);
        let known = |keys: &[&str]| match members.iter().find(|member| !keys.contains(&member.name.as_str())) {
            None => Ok(()),
            Some(stray) => Err(Fault::format(
                stray.key.column(),
                format!("unknown key \"{}\"; a prompt here is {EXAMPLE}", stray.name),
            )),
        };
        if let Some(prompt) = member("prompt") {
            known(&["prompt", "completion"])?;
            let question = Question::Text(filled(prompt)?);
            return Ok(Self { question, answer: member("completion").map(filled).transpose()? });
        }
        let Some(messages) = member("messages") else {
            return Err(Fault::format(
                root.column(),
                format!("the key \"messages\" is missing; a prompt is {EXAMPLE}"),
            ));
        };
        known(&["schemaVersion", "system", "messages"])?;
        let system = match member("system") {
            Some(system) => Some(text_of(system.value, "system")?).filter(|text| !text.trim().is_empty()),
            None => None,
        };
        let items = messages.value.items("messages")?;
        let turns = alternating(&items, "messages", 0, Role::User)?;
        let mut turns = turns.into_iter().map(|turn| turn.text);
        match (turns.next(), turns.next(), turns.next()) {
            (Some(user), answer, None) => Ok(Self { question: Question::Turn { system, user }, answer }),
            (None, ..) => Err(Fault::format(messages.value.column(), "messages: is empty; give the user's turn")),
            (_, _, Some(_)) => Err(Fault::format(
                items.get(2).map(json::Node::column),
                "messages[2]: a prompt for distillation is one user's turn; conversations of several are left out",
            )),
        }
    }
}

/// What a record looks like.
const EXAMPLE: &str = r#"{"schemaVersion": "bedrock-conversation-2024", "messages": [{"role": "user", "content": [{"text": "..."}]}]} or {"prompt": "..."}"#;

fn filled(member: &Member<'_>) -> Result<String, Fault> {
    let text = member.value.string(&member.name)?;
    if text.trim().is_empty() {
        return Err(Fault::format(member.value.column(), format!("{}: is empty", member.name)));
    }
    Ok(text)
}

impl Question {
    /// The turn as a conversation; `None` for a text.
    pub fn conversation(&self) -> Option<Conversation> {
        let Self::Turn { system, user } = self else { return None };
        let messages = vec![Message { role: Role::User, text: user.clone() }];
        Some(Conversation { system: system.clone(), messages })
    }

    /// What the user says.
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Turn { user: text, .. } => text,
        }
    }

    /// The line from which a model learns `answer`.
    pub fn record(&self, answer: &str) -> String {
        let record = match self {
            Self::Text(prompt) => json!({"prompt": prompt, "completion": answer}),
            Self::Turn { system, user } => {
                let mut record = json!({"schemaVersion": "bedrock-conversation-2024"});
                if let Some(system) = system {
                    record["system"] = json!([{"text": system}]);
                }
                record["messages"] = json!([
                    {"role": "user", "content": [{"text": user}]},
                    {"role": "assistant", "content": [{"text": answer}]},
                ]);
                record
            }
        };
        record.to_string()
    }

    /// Whether both may stand in one data set.
    pub fn is_like(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Text(_), Self::Text(_)) | (Self::Turn { .. }, Self::Turn { .. }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Objective, Record};

    #[test]
    fn a_prompt_is_one_users_turn_with_or_without_an_answer() {
        let asked = Asked::parse(r#"{"schemaVersion": "x", "system": [{"text": "Be short."}], "messages": [{"role": "user", "content": [{"text": "Hi"}]}]}"#).unwrap();
        assert_eq!(asked.question, Question::Turn { system: Some("Be short.".into()), user: "Hi".into() });
        assert_eq!(asked.answer, None);
        let asked = Asked::parse(
            r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}"#,
        );
        assert_eq!(asked.unwrap().answer.as_deref(), Some("Hello"));
        let asked = Asked::parse(r#"{"prompt": "Hi"}"#).unwrap();
        assert_eq!(asked, Asked { question: Question::Text("Hi".into()), answer: None });
    }

    #[test]
    fn what_is_no_prompt_is_named_with_its_place() {
        for (line, words) in [
            (r#"{"prompt": " "}"#, "prompt: is empty"),
            (r#"{"messages": []}"#, "messages: is empty"),
            (r#"{"messages": [{"role": "assistant", "content": "a"}]}"#, "expected \"user\""),
            (r#"{"input": "a"}"#, "the key \"messages\" is missing"),
            (r#"{"prompt": "a", "messages": []}"#, "unknown key \"messages\""),
            (
                r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]}"#,
                "conversations of several are left out",
            ),
        ] {
            let fault = Asked::parse(line).unwrap_err();
            assert!(fault.reason.contains(words), "{line}: {}", fault.reason);
        }
    }

    #[test]
    fn an_answered_prompt_is_a_record_for_fine_tuning() {
        let turn = Question::Turn { system: Some("Be short.".into()), user: "Hi \"you\"".into() };
        let (_, record) = Record::parse(&turn.record("Hello"), Objective::FineTuning).unwrap();
        let Record::Conversation(conversation) = record else { panic!("{record:?}") };
        assert_eq!(conversation.messages[0].text, "Hi \"you\"");
        assert_eq!(conversation.messages[1].text, "Hello");
        let text = Question::Text("Q".into());
        let (_, record) = Record::parse(&text.record("A"), Objective::FineTuning).unwrap();
        assert_eq!(record, Record::Completion { prompt: "Q".into(), completion: "A".into() });
        assert!(!text.is_like(&turn) && turn.is_like(&turn));
    }
}
