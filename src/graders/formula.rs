//! The formula of a `multi` grader: numbers, the names of its graders, `+ - * / ^`, brackets, and the functions
//! min, max, abs, floor, ceil, exp, sqrt and log. Source: OpenAI's guide to graders, "Multigraders".

use crate::error::{Error, Result};

/// Formulas nest at most so deep: a stack is finite.
const DEEPEST: usize = 64;
/// The longest formula, in bytes.
const MAX_BYTES: usize = 16 << 10;
/// Characters of a formula that a message quotes.
const QUOTED: usize = 80;

/// A formula over named values, in reverse Polish notation: it takes no stack to compute and none to drop, however
/// long it is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Formula {
    steps: Vec<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Number(f64),
    /// By its place among the names.
    Name(usize),
    Negative,
    Two(Operator),
    /// Of so many arguments.
    Call(Function, usize),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Power,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Function {
    Min,
    Max,
    Abs,
    Floor,
    Ceil,
    Exp,
    Sqrt,
    Log,
}

impl Function {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "min" => Self::Min,
            "max" => Self::Max,
            "abs" => Self::Abs,
            "floor" => Self::Floor,
            "ceil" => Self::Ceil,
            "exp" => Self::Exp,
            "sqrt" => Self::Sqrt,
            "log" => Self::Log,
            _ => return None,
        })
    }
}

impl Operator {
    fn apply(self, left: f64, right: f64) -> f64 {
        match self {
            Self::Add => left + right,
            Self::Subtract => left - right,
            Self::Multiply => left * right,
            Self::Divide => left / right,
            Self::Power => left.powf(right),
        }
    }
}

impl Function {
    fn apply(self, given: &[f64]) -> f64 {
        let first = given.first().copied().unwrap_or(f64::NAN);
        let rest = given.iter().skip(1).copied();
        match self {
            // A value that is no number must not vanish in a minimum.
            Self::Min => rest.fold(first, |a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) }),
            Self::Max => rest.fold(first, |a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }),
            Self::Abs => first.abs(),
            Self::Floor => first.floor(),
            Self::Ceil => first.ceil(),
            Self::Exp => first.exp(),
            Self::Sqrt => first.sqrt(),
            Self::Log => first.ln(),
        }
    }
}

impl Formula {
    /// Reads `text`, in which `names` may stand.
    ///
    /// # Errors
    /// `Validation` that says where it cannot be read.
    pub(super) fn parse(text: &str, names: &[String]) -> Result<Self> {
        if text.len() > MAX_BYTES {
            return Err(Error::validation(format!(
                "calculate_output takes {} bytes; it may take at most {MAX_BYTES}",
                text.len()
            )));
        }
        let mut reader = Reader { text, at: 0, names, depth: 0, steps: Vec::new() };
        reader.sum()?;
        reader.space();
        if reader.at < text.len() {
            return Err(reader.wrong("nothing more is expected"));
        }
        Ok(Self { steps: reader.steps })
    }

    /// Its value, with the values of the names in their order.
    pub(super) fn value(&self, values: &[f64]) -> f64 {
        let mut stack: Vec<f64> = Vec::new();
        for step in &self.steps {
            let value = match step {
                Step::Number(number) => *number,
                Step::Name(place) => values.get(*place).copied().unwrap_or(f64::NAN),
                Step::Negative => -stack.pop().unwrap_or(f64::NAN),
                Step::Two(operator) => {
                    let right = stack.pop().unwrap_or(f64::NAN);
                    operator.apply(stack.pop().unwrap_or(f64::NAN), right)
                }
                Step::Call(function, count) => {
                    let given = stack.split_off(stack.len().saturating_sub(*count));
                    function.apply(&given)
                }
            };
            stack.push(value);
        }
        stack.pop().unwrap_or(f64::NAN)
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    names: &'a [String],
    depth: usize,
    steps: Vec<Step>,
}

impl Reader<'_> {
    fn sum(&mut self) -> Result<()> {
        self.product()?;
        while let Some(sign) = self.one_of(&['+', '-']) {
            self.product()?;
            self.steps.push(Step::Two(if sign == '+' { Operator::Add } else { Operator::Subtract }));
        }
        Ok(())
    }

    fn product(&mut self) -> Result<()> {
        self.signed()?;
        while let Some(sign) = self.one_of(&['*', '/']) {
            self.signed()?;
            self.steps.push(Step::Two(if sign == '*' { Operator::Multiply } else { Operator::Divide }));
        }
        Ok(())
    }

    /// A sign binds less than a power: -2^2 is -4. Everything that recurses comes through here and is counted.
    fn signed(&mut self) -> Result<()> {
        self.deeper()?;
        match self.one_of(&['+', '-']) {
            Some('-') => {
                self.signed()?;
                self.steps.push(Step::Negative);
            }
            Some(_) => self.signed()?,
            None => self.power()?,
        }
        self.depth -= 1;
        Ok(())
    }

    fn power(&mut self) -> Result<()> {
        self.value()?;
        if self.one_of(&['^']).is_some() {
            self.signed()?;
            self.steps.push(Step::Two(Operator::Power));
        }
        Ok(())
    }

    fn value(&mut self) -> Result<()> {
        if self.one_of(&['(']).is_some() {
            self.sum()?;
            return self.close();
        }
        self.space();
        let rest = &self.text[self.at..];
        let first = rest.chars().next();
        if first.is_some_and(|c| c.is_ascii_digit() || c == '.') {
            return self.number(rest);
        }
        let length = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let name = &rest[..length];
        if name.is_empty() {
            return Err(self.wrong("a number, a grader's name or a function is expected"));
        }
        self.at += length;
        // A grader of a function's name is that grader, unless it is called.
        if self.one_of(&['(']).is_some() {
            let function = Function::named(name).ok_or_else(|| {
                self.wrong(&format!(
                    "there is no function {}; there are min, max, abs, floor, ceil, exp, sqrt and log",
                    quoted(name)
                ))
            })?;
            return self.call(function, name);
        }
        match self.names.iter().position(|known| known == name) {
            Some(place) => self.steps.push(Step::Name(place)),
            None => {
                let known = self.names.join(", ");
                return Err(self.wrong(&format!("there is no grader {}; there are {}", quoted(name), quoted(&known))));
            }
        }
        Ok(())
    }

    fn number(&mut self, rest: &str) -> Result<()> {
        let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let mut length = digits(rest);
        if rest[length..].starts_with('.') {
            length += 1 + digits(&rest[length + 1..]);
        }
        let exponent = rest[length..].strip_prefix(['e', 'E']).map(|tail| {
            let sign = usize::from(tail.starts_with(['+', '-']));
            (1 + sign, digits(&tail[sign..]))
        });
        if let Some((before, digits)) = exponent.filter(|(_, digits)| *digits > 0) {
            length += before + digits;
        }
        let number = rest[..length].parse().map_err(|_| self.wrong("this is no number"))?;
        self.at += length;
        self.steps.push(Step::Number(number));
        Ok(())
    }

    fn call(&mut self, function: Function, name: &str) -> Result<()> {
        self.sum()?;
        let mut count = 1;
        while self.one_of(&[',']).is_some() {
            self.sum()?;
            count += 1;
        }
        self.close()?;
        let takes_many = matches!(function, Function::Min | Function::Max);
        if takes_many == (count == 1) {
            let takes = if takes_many { "two values or more" } else { "one value" };
            return Err(self.wrong(&format!("{name} takes {takes}")));
        }
        self.steps.push(Step::Call(function, count));
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        match self.one_of(&[')']) {
            Some(_) => Ok(()),
            None => Err(self.wrong("a closing bracket is expected")),
        }
    }

    fn one_of(&mut self, wanted: &[char]) -> Option<char> {
        self.space();
        let next = self.text[self.at..].chars().next().filter(|c| wanted.contains(c))?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn space(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn deeper(&mut self) -> Result<()> {
        self.depth += 1;
        if self.depth > DEEPEST { Err(self.wrong("it nests too deep")) } else { Ok(()) }
    }

    fn wrong(&self, what: &str) -> Error {
        let place = self.text[..self.at].chars().count() + 1;
        Error::validation(format!("calculate_output {:?}, at character {place}: {what}", quoted(self.text)))
    }
}

/// The beginning of a text that may be long.
fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> f64 {
        let names = ["a".to_string(), "b_2".to_string(), "max".to_string()];
        Formula::parse(text, &names).unwrap().value(&[0.5, 3.0, 7.0])
    }

    #[test]
    fn operators_bind_as_in_arithmetic() {
        for (text, expected) in [
            ("1 + 2 * 3", 7.0),
            ("(1+2)*3", 9.0),
            ("8 / 4 / 2", 1.0),
            ("7 - 2 - 1", 4.0),
            ("-2 ^ 2", -4.0),
            ("2 ^ 3 ^ 2", 512.0),
            ("2 ^ -1", 0.5),
            ("1.5e1 + .5", 15.5),
            ("0.25 * a + 0.5 * b_2", 1.625),
            ("max", 7.0),
            ("max(a, b_2, 1) + min(a, b_2)", 3.5),
            ("abs(-3) + floor(1.9) + ceil(1.1)", 6.0),
            ("exp(0) + sqrt(9) + log(1)", 4.0),
        ] {
            assert_eq!(value(text), expected, "{text}");
        }
        assert!(value("1 / (a - a)").is_infinite() && value("min(1, log(-1))").is_nan());
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_place() {
        for (text, part) in [
            ("1 +", "character 4"),
            ("a b", "character 3: nothing more"),
            ("c + 1", "there is no grader c; there are a"),
            ("sin(a)", "there is no function sin"),
            ("min(a)", "min takes two values or more"),
            ("abs(a, 1)", "abs takes one value"),
            ("(a", "a closing bracket"),
            ("", "character 1"),
        ] {
            let names = ["a".to_string()];
            let error = Formula::parse(text, &names).unwrap_err();
            assert!(error.message().contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_formula_takes_no_stack_however_it_is_written() {
        let names = ["a".to_string()];
        let times = 7_000;
        for (text, value) in [
            (format!("1{}", "+1".repeat(times)), 1.0 + times as f64),
            (format!("1{}", "-1".repeat(times)), 1.0 - times as f64),
            (format!("1{}", "*1".repeat(times)), 1.0),
            (format!("1{}", "/1".repeat(times)), 1.0),
            (format!("max(1{})", ",1".repeat(times)), 1.0),
        ] {
            // An eighth of what a thread has by itself.
            let work = move || Formula::parse(&text, &["a".to_string()]).unwrap().clone().value(&[1.0]);
            let thread = std::thread::Builder::new().stack_size(128 << 10).spawn(work).unwrap();
            assert_eq!(thread.join().unwrap(), value);
        }
        for text in [
            format!("{}1{}", "(".repeat(times), ")".repeat(times)),
            format!("1{}", "^1".repeat(times)),
            format!("{}1", "-".repeat(times)),
            format!("{}1", "+".repeat(times)),
            format!("{}1{}", "abs(".repeat(times / 3), ")".repeat(times / 3)),
        ] {
            assert!(Formula::parse(&text, &names).unwrap_err().message().contains("too deep"), "{}", &text[..20]);
        }
        let long = format!("1{}", "+1".repeat(200_000));
        assert!(Formula::parse(&long, &names).unwrap_err().message().contains("takes 400001 bytes"));
    }

    #[test]
    fn a_refusal_quotes_the_beginning_of_a_long_formula() {
        let names = vec!["n".repeat(5_000); 3];
        let message = Formula::parse(&"m".repeat(5_000), &names).unwrap_err().message().to_string();
        assert!(message.contains("there is no grader mmm") && message.chars().count() < 500, "{message}");
    }
}
