//! A prompt with two answers, of which one is preferred, in the forms that trl's preference data sets have
//! (<https://huggingface.co/docs/trl/dataset_formats>) and in Bedrock's form of a conversation: the prompt as a text,
//! as messages in `prompt` or `messages`, or as what both conversations begin with.

use super::json::{Member, Node};
use super::jsonl::Fault;
use super::records::{Conversation, Format, Message, Role, alternating, filled, text_of};

/// What a preference may hold.
pub(super) const KEYS: &[&str] = &["prompt", "chosen", "rejected", "schemaVersion", "system", "messages"];

/// A prompt with two answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preference {
    /// One question, two texts.
    Completion {
        /// What the model is given.
        prompt: String,
        /// The better answer, and the other.
        answers: [String; 2],
    },
    /// Two conversations with one beginning.
    Conversation {
        /// With the better answer, and with the other.
        answers: [Conversation; 2],
        /// How many messages are the prompt.
        prompt: usize,
    },
}

/// Reads a record whose members are `members`.
pub(super) fn parse(root: &Node<'_>, members: &[Member<'_>]) -> Result<Preference, Fault> {
    let find = |name: &str| members.iter().find(|member| member.name == name).map(|member| member.value);
    let need = |name: &str| {
        find(name).ok_or_else(|| {
            let example = Format::Preference.example();
            Fault::format(root.column(), format!("the key \"{name}\" is missing; a record here is {example}"))
        })
    };
    let (chosen, rejected) = (need("chosen")?, need("rejected")?);
    if let Some(version) = find("schemaVersion") {
        version.string("schemaVersion")?;
    }
    let system = match find("system") {
        Some(node) => Some(text_of(node, "system")?).filter(|text| !text.trim().is_empty()),
        None => None,
    };
    let prompt = match (find("prompt"), find("messages")) {
        (Some(_), Some(messages)) => {
            let reason = "the prompt stands in \"prompt\" or in \"messages\", not in both";
            return Err(Fault::format(messages.column(), reason));
        }
        (Some(prompt), None) if prompt.kind() == "a string" => {
            let prompt = filled(prompt, "prompt", "there is nothing to answer")?;
            if system.is_some() {
                let reason = "a system prompt needs a conversation: give the prompt as messages";
                return Err(Fault::format(root.column(), reason));
            }
            let answers = [
                filled(chosen, "chosen", "there is nothing to learn")?,
                filled(rejected, "rejected", "there is nothing to learn")?,
            ];
            return differing(Preference::Completion { prompt, answers }, rejected);
        }
        (Some(prompt), None) => Some(question(prompt, "prompt", system)?),
        (None, Some(messages)) => Some(question(messages, "messages", system)?),
        (None, None) => None,
    };
    let preference = match prompt {
        Some(prompt) => {
            let with = |node, path| {
                let mut conversation = prompt.clone();
                conversation.messages.extend(answer(node, path)?);
                Ok(conversation)
            };
            let answers = [with(chosen, "chosen")?, with(rejected, "rejected")?];
            Preference::Conversation { answers, prompt: prompt.messages.len() }
        }
        None => {
            let whole = |node: Node<'_>, path| {
                if node.kind() != "an array" {
                    let reason =
                        format!("the key \"prompt\" is missing; a record here is {}", Format::Preference.example());
                    return Err(Fault::format(root.column(), reason));
                }
                let conversation = beginning(node, path, None)?;
                match conversation.messages.last() {
                    Some(Message { role: Role::Assistant, .. }) => Ok(conversation),
                    _ => Err(Fault::format(node.column(), format!("{path}: must end with the assistant's answer"))),
                }
            };
            let answers = [whole(chosen, "chosen")?, whole(rejected, "rejected")?];
            let [better, worse] = &answers;
            let same = better.messages.iter().zip(&worse.messages).take_while(|(a, b)| a == b).count();
            // Where one conversation goes on behind the other's end, its last question is still the prompt's.
            let prompt = same.min(better.messages.len() - 1).min(worse.messages.len() - 1);
            let asked = prompt > 0 && better.messages[prompt - 1].role == Role::User;
            if better.system != worse.system || !(asked || answers[0] == answers[1]) {
                let reason = "rejected: must begin with the same messages as chosen, up to a question of the user";
                return Err(Fault::format(rejected.column(), reason));
            }
            Preference::Conversation { answers, prompt }
        }
    };
    differing(preference, rejected)
}

/// Of two answers that are the same none is better.
fn differing(preference: Preference, rejected: Node<'_>) -> Result<Preference, Fault> {
    let same = match &preference {
        Preference::Completion { answers: [chosen, rejected], .. } => chosen == rejected,
        Preference::Conversation { answers: [chosen, rejected], .. } => chosen == rejected,
    };
    if same {
        return Err(Fault::format(rejected.column(), "rejected: is the same as chosen; there is nothing to prefer"));
    }
    Ok(preference)
}

/// A conversation that ends with the user's question.
fn question(node: Node<'_>, path: &str, system: Option<String>) -> Result<Conversation, Fault> {
    let conversation = beginning(node, path, system)?;
    match conversation.messages.last() {
        Some(Message { role: Role::User, .. }) => Ok(conversation),
        _ => Err(Fault::format(node.column(), format!("{path}: must end with the user's question"))),
    }
}

/// Messages from the first one on, which may be the system's.
fn beginning(node: Node<'_>, path: &str, system: Option<String>) -> Result<Conversation, Fault> {
    let mut items = node.items(path)?;
    let mut system = system;
    let mut skipped = 0;
    if let Some(first) = items.first().copied()
        && first.kind() == "an object"
    {
        let members = first.members(&format!("{path}[0]"))?;
        let value = |name: &str| members.iter().find(|member| member.name == name).map(|member| member.value);
        if let (Some(role), Some(content)) = (value("role"), value("content"))
            && role.kind() == "a string"
            && role.string(path)? == "system"
        {
            if system.is_some() {
                return Err(Fault::format(first.column(), format!("{path}[0]: there are two system prompts")));
            }
            system = Some(text_of(content, &format!("{path}[0].content"))?).filter(|text| !text.trim().is_empty());
            items.remove(0);
            skipped = 1;
        }
    }
    Ok(Conversation { system, messages: alternating(&items, path, skipped, Role::User)? })
}

/// An answer: a text, or messages that begin and end with the assistant's.
fn answer(node: Node<'_>, path: &str) -> Result<Vec<Message>, Fault> {
    if node.kind() == "a string" {
        return Ok(vec![Message { role: Role::Assistant, text: filled(node, path, "there is nothing to learn")? }]);
    }
    if node.kind() != "an array" {
        return Err(node.expected(path, "a string or an array of messages"));
    }
    let messages = alternating(&node.items(path)?, path, 0, Role::Assistant)?;
    match messages.last() {
        Some(Message { role: Role::Assistant, .. }) => Ok(messages),
        _ => Err(Fault::format(node.column(), format!("{path}: must end with the assistant's answer"))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::records::{Objective, Record};
    use super::*;

    fn read(line: &str) -> Preference {
        match Record::parse(line, Objective::Preferences).unwrap() {
            (Format::Preference, Record::Preference(preference)) => preference,
            other => panic!("{other:?}"),
        }
    }

    fn refused(line: &str) -> String {
        Record::parse(line, Objective::Preferences).unwrap_err().reason
    }

    #[test]
    fn a_prompt_and_two_texts_are_a_preference() {
        let read = read(r#"{"prompt": "1+1?", "chosen": "2", "rejected": "3"}"#);
        assert_eq!(read, Preference::Completion { prompt: "1+1?".into(), answers: ["2".into(), "3".into()] });
    }

    #[test]
    fn every_form_of_a_conversation_is_the_same_preference() {
        let lines = [
            r#"{"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}],
                "chosen": [{"role": "assistant", "content": "2"}], "rejected": [{"role": "assistant", "content": "3"}]}"#,
            r#"{"system": "Be brief.", "prompt": [{"role": "user", "content": "1+1?"}], "chosen": "2", "rejected": "3"}"#,
            r#"{"schemaVersion": "bedrock-conversation-2024", "system": [{"text": "Be brief."}],
                "messages": [{"role": "user", "content": [{"text": "1+1?"}]}], "chosen": "2", "rejected": "3"}"#,
            r#"{"chosen": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"},
                {"role": "assistant", "content": "2"}], "rejected": [{"role": "system", "content": "Be brief."},
                {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "3"}]}"#,
        ];
        let Preference::Conversation { answers: [chosen, rejected], prompt } = read(&lines[0].replace('\n', " "))
        else {
            panic!("no conversation")
        };
        assert_eq!((chosen.system.as_deref(), prompt, chosen.messages.len()), (Some("Be brief."), 1, 2));
        assert_eq!((chosen.messages[1].text.as_str(), rejected.messages[1].text.as_str()), ("2", "3"));
        for line in &lines[1..] {
            let line = line.replace('\n', " ");
            assert_eq!(
                read(&line),
                Preference::Conversation { answers: [chosen.clone(), rejected.clone()], prompt },
                "{line}"
            );
        }
    }

    #[test]
    fn what_is_no_preference_is_refused_with_what_to_change() {
        for (line, said) in [
            (r#"{"prompt": "a", "chosen": "b"}"#, "the key \"rejected\" is missing; a record here is {\"prompt\""),
            (r#"{"prompt": "a", "chosen": "b", "rejected": "b"}"#, "rejected: is the same as chosen"),
            (r#"{"prompt": "a", "chosen": "b", "rejected": " "}"#, "rejected: is empty"),
            (r#"{"prompt": "a", "completion": "b"}"#, "is for supervised fine-tuning"),
            (r#"{"prompt": "a", "chosen": "b", "rejectd": "c"}"#, "did you mean \"rejected\"?"),
            (r#"{"chosen": "b", "rejected": "c"}"#, "the key \"prompt\" is missing"),
            (
                r#"{"prompt": [{"role": "assistant", "content": "a"}], "chosen": "b", "rejected": "c"}"#,
                "expected \"user\"",
            ),
            (
                r#"{"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "rejected": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "c"}]}"#,
                "must begin with the same messages as chosen",
            ),
        ] {
            let reason = refused(line);
            assert!(reason.contains(said), "{line}: {reason}");
        }
        let fault = Record::parse(r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#, Objective::FineTuning);
        assert!(fault.unwrap_err().reason.contains("trainingObjective dpo"));
    }
}
