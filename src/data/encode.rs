//! Text to tokens, with one bool per token: is it to be learned? The answer comes from the token's
//! place in the text, never from its id, so an end-of-text token is learned where the answer ends and
//! nowhere else. Training and serving tokenise through the same [`Encoder`].

use std::ops::Range;

use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use super::chat::Template;
use super::preference::Preference;
use super::records::{Conversation, Message, Record, Role};
use crate::error::{Error, Kind, Result};
use crate::models::{encode_text, encode_with_offsets};

/// A tokenizer with its chat template.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: Tokenizer,
    template: Option<Template>,
    /// Why the model's chat template is not used.
    template_fault: Option<String>,
    bos: Option<u32>,
    eos: Option<u32>,
    end_of_turn: Option<u32>,
    /// Special tokens as text: a prompt that holds one was rendered by its author.
    special: Vec<String>,
    digest: String,
}

/// The tokens of one record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// For each token: is the model to predict it from the ones before? Never true for the first.
    pub learn: Vec<bool>,
}

impl Encoder {
    /// `bos` and `eos` are special tokens as text, `template` the source of the chat template.
    pub fn new(mut tokenizer: Tokenizer, bos: Option<&str>, eos: Option<&str>, template: Option<&str>) -> Result<Self> {
        // A tokenizer.json may carry settings of whoever saved it; they would cut records silently.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(broken)?;
        let id = |token: Option<&str>| match token {
            None => Ok(None),
            Some(text) => tokenizer.token_to_id(text).map(Some).ok_or_else(|| {
                Error::validation(format!("The tokenizer has no token \"{text}\", which its configuration names"))
            }),
        };
        let (bos_id, eos_id) = (id(bos)?, id(eos)?);
        let special =
            tokenizer.get_added_tokens_decoder().into_values().filter(|t| t.special).map(|t| t.content).collect();
        let mut digest = Sha256::new();
        digest.update(tokenizer.to_string(false).map_err(broken)?);
        for part in [bos, eos, template] {
            // The length keeps parts apart.
            digest.update(part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
            digest.update(part.unwrap_or_default());
        }
        // Prompts that need no template are still taken.
        let (template, template_fault) = match template.map(|source| Template::parse(source, bos, eos)).transpose() {
            Ok(template) => (template, None),
            Err(fault) if fault.kind() == Kind::Validation => (None, Some(fault.message().to_owned())),
            Err(error) => return Err(error),
        };
        let end_of_turn = template.as_ref().and_then(|template| template.end_of_turn()).and_then(|end| {
            let ids = encode_text(&tokenizer, &end, false).ok()?;
            if let [id] = ids[..] { Some(id) } else { None }
        });
        let digest = hex::encode(digest.finalize());
        Ok(Self { tokenizer, template, template_fault, bos: bos_id, eos: eos_id, end_of_turn, special, digest })
    }

    /// The tokenizer and template of a base model.
    pub fn of(model: &crate::models::Tokenizer) -> Result<Self> {
        Self::new(model.inner().clone(), model.bos(), model.eos(), model.chat_template())
    }

    /// SHA-256 over everything that decides how text becomes tokens, for the manifest.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Tells the chat template how long the model may reason, where it asks for `reasoning_effort`.
    pub fn set_reasoning_effort(&mut self, effort: &str) {
        if let Some(template) = &mut self.template {
            template.set_reasoning_effort(effort);
            self.digest = hex::encode(Sha256::digest(format!("{} {effort}", self.digest)));
        }
    }

    /// The chat template, when the base has one.
    pub fn template(&self) -> Option<&Template> {
        self.template.as_ref()
    }

    /// The token with which the chat template ends the assistant's turn: what a tuned model has learned to
    /// say when it has said all, beside end-of-text.
    pub fn end_of_turn(&self) -> Option<u32> {
        self.end_of_turn
    }

    /// The token sequences of a record: one, or of a preference the better answer's and the worse one's. A prompt
    /// with its completion is one turn through the chat template when the base has one, else the two texts joined,
    /// then end-of-text.
    ///
    /// # Errors
    /// When the base has no chat template for a conversation, or it does not take it.
    pub fn sequences(&self, record: &Record) -> Result<Vec<Encoded>> {
        Ok(match record {
            Record::Text(text) => {
                let mut encoded = self.plain(text, 0..text.len())?;
                self.end(&mut encoded);
                vec![encoded]
            }
            Record::Completion { prompt, completion } => vec![self.completion(prompt, completion)?],
            Record::Conversation(conversation) => vec![self.conversation(conversation, 0)?],
            Record::Preference(Preference::Completion { prompt, answers }) => {
                answers.iter().map(|answer| self.completion(prompt, answer)).collect::<Result<_>>()?
            }
            Record::Preference(Preference::Conversation { prompt, answers }) => {
                answers.iter().map(|whole| self.conversation(whole, *prompt)).collect::<Result<_>>()?
            }
        })
    }

    /// A prompt with its completion, which is what is learned.
    ///
    /// # Errors
    /// When the base's chat template does not take it.
    pub fn completion(&self, prompt: &str, completion: &str) -> Result<Encoded> {
        if self.written_out(prompt) {
            let text = format!("{prompt}{completion}");
            let mut encoded = self.plain(&text, prompt.len()..text.len())?;
            self.end(&mut encoded);
            return Ok(encoded);
        }
        let mut conversation = question(prompt);
        conversation.messages.push(Message { role: Role::Assistant, text: completion.to_owned() });
        self.conversation(&conversation, 0)
    }

    /// The prompt of a native request (`InvokeModel`): rendered as one user's turn when the base has a chat
    /// template, as `{"prompt", "completion"}` records are in training, unless it already holds special
    /// tokens, that is, its author rendered it.
    pub fn text_prompt(&self, prompt: &str) -> Result<Vec<u32>> {
        self.text_prompt_while(prompt, &|| Ok(()))
    }

    /// The same as long as `goes_on` says that it is wanted.
    ///
    /// # Errors
    /// As [`Encoder::text_prompt`]; else what `goes_on` says.
    pub fn text_prompt_while(&self, prompt: &str, goes_on: &dyn Fn() -> Result<()>) -> Result<Vec<u32>> {
        if self.written_out(prompt) {
            let mut encoded = self.plain(prompt, 0..0)?;
            // A tokenizer that ends every text would end the prompt before the answer.
            if self.eos.is_some() && encoded.tokens.last() == self.eos.as_ref() && !self.ends_with_eos(prompt) {
                encoded.tokens.pop();
            }
            return Ok(encoded.tokens);
        }
        self.chat_prompt_while(&question(prompt), goes_on)
    }

    /// The prompt of a conversation that ends with the user's turn.
    pub fn chat_prompt(&self, conversation: &Conversation) -> Result<Vec<u32>> {
        self.tokens(&self.need_template()?.render(conversation, true)?)
    }

    /// The same as long as `goes_on` says that it is wanted.
    ///
    /// # Errors
    /// As [`Encoder::chat_prompt`]; else what `goes_on` says.
    pub fn chat_prompt_while(&self, conversation: &Conversation, goes_on: &dyn Fn() -> Result<()>) -> Result<Vec<u32>> {
        let text = self.need_template()?.prompt_while(conversation, goes_on)?;
        goes_on()?;
        self.tokens(&text)
    }

    fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        encode_text(&self.tokenizer, text, false)
    }

    /// A conversation that ends with the assistant's turn, of which what the assistant says behind the first
    /// `given` messages is learned.
    ///
    /// # Errors
    /// When the base has no chat template, or it does not take the conversation.
    pub fn conversation(&self, conversation: &Conversation, given: usize) -> Result<Encoded> {
        let rendered = self.need_template()?.render_spoken(conversation)?;
        let encoding = encode_with_offsets(&self.tokenizer, &rendered.text, false)?;
        let said = conversation.messages.iter().take(given).filter(|message| message.role == Role::Assistant).count();
        let mut encoded = self.mark(&encoding, rendered.spoken.get(said..).unwrap_or_default());
        if rendered.end_of_turn.is_empty() {
            self.end(&mut encoded);
        }
        // What follows the last learned token teaches nothing.
        let length = encoded.learn.iter().rposition(|learn| *learn).map_or(0, |last| last + 1);
        encoded.tokens.truncate(length);
        encoded.learn.truncate(length);
        Ok(encoded)
    }

    /// Text without a template, with the special tokens that the tokenizer adds by itself.
    fn plain(&self, text: &str, learned: Range<usize>) -> Result<Encoded> {
        let encoding = encode_with_offsets(&self.tokenizer, text, true)?;
        let mut encoded = self.mark(&encoding, &[learned]);
        if self.bos.is_some_and(|bos| encoded.tokens.starts_with(&[bos, bos])) {
            // The text brought its own and the tokenizer added another.
            encoded.tokens.remove(0);
            encoded.learn.remove(0);
        }
        if let Some(first) = encoded.learn.first_mut() {
            *first = false;
        }
        Ok(encoded)
    }

    /// Puts end-of-text at the end, once, and has it learned.
    fn end(&self, encoded: &mut Encoded) {
        let Some(eos) = self.eos else { return };
        if encoded.tokens.last() == Some(&eos) && encoded.tokens.len() > 1 {
            encoded.learn.pop();
        } else {
            encoded.tokens.push(eos);
        }
        encoded.learn.push(true);
    }

    /// Which tokens lie, at least in part, in one of the `spans` (byte ranges in order).
    fn mark(&self, encoding: &tokenizers::Encoding, spans: &[Range<usize>]) -> Encoded {
        let mut learn = Vec::with_capacity(encoding.len());
        let mut covered = 0;
        for (i, (start, end)) in encoding.get_offsets().iter().copied().enumerate() {
            // Tokenizers may trim white space off the offsets, and give every piece of a split character
            // the whole character: a token covers what lies between the last one's end and its own.
            let start = start.min(covered);
            let inside = spans.iter().any(|span| start < span.end && end > span.start);
            learn.push(inside && i > 0);
            covered = covered.max(end);
        }
        Encoded { tokens: encoding.get_ids().to_vec(), learn }
    }

    fn need_template(&self) -> Result<&Template> {
        if let Some(fault) = &self.template_fault {
            return Err(Error::validation(fault.as_str()));
        }
        self.template.as_ref().ok_or_else(|| {
            Error::validation(
                "This base model has no chat template and cannot take conversations; give {\"prompt\": \"...\", \
                 \"completion\": \"...\"}",
            )
        })
    }

    /// Is the prompt to be taken as it is?
    fn written_out(&self, prompt: &str) -> bool {
        let has_template = self.template.is_some() || self.template_fault.is_some();
        !has_template || self.special.iter().any(|token| prompt.contains(token.as_str()))
    }

    fn ends_with_eos(&self, prompt: &str) -> bool {
        self.eos.and_then(|eos| self.tokenizer.id_to_token(eos)).is_some_and(|token| prompt.ends_with(&token))
    }
}

fn question(prompt: &str) -> Conversation {
    Conversation { system: None, messages: vec![Message { role: Role::User, text: prompt.to_owned() }] }
}

fn broken(cause: tokenizers::Error) -> Error {
    Error::internal(anyhow::anyhow!("tokenizer: {cause}"))
}
