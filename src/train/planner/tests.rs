//! What the planner promises of its decisions; that its sums are what runs really take is a test of the
//! whole binary.

use serde_json::json;

use super::*;
use crate::kernels::Paging;
use crate::tune::TuningMethod;

const GIB: u64 = 1 << 30;

/// Llama 3 of 8 billion weights.
fn llama_8b() -> DecoderConfig {
    let file = json!({"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8});
    DecoderConfig::parse(&file.to_string()).unwrap()
}

fn tiny() -> DecoderConfig {
    let file = json!({"model_type": "llama", "vocab_size": 300, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4});
    DecoderConfig::parse(&file.to_string()).unwrap()
}

fn question<'a>(base: &'a DecoderConfig, method: &'a TuningMethod, memory: u64) -> Question<'a> {
    Question {
        base,
        method,
        form: method.form(),
        keeps_best: false,
        quantizes: false,
        cores: 2,
        parts: 1,
        slots: 1,
        token_budget: None,
        longest: 512,
        memory: Memory::host(memory),
        host: 1 << 40,
        can_page: true,
        has_values: false,
        goes_back: false,
    }
}

/// Settings with this method; early stopping keeps the best weights.
fn settings(method: TuningMethod, keeps_best: bool) -> Settings {
    let none = std::collections::BTreeMap::new();
    let early_stopping = keeps_best.then_some(crate::train::EarlyStopping { threshold: 0.0, patience: 1 });
    Settings { method, early_stopping, ..Settings::parse(&none, &none).unwrap() }
}

/// Every micro-batch as full as its budget.
fn full(budget: usize) -> Largest {
    Largest { rows: budget.max(512), records: 1, micros: 1, validation_rows: 0 }
}

fn lora() -> TuningMethod {
    TuningMethod::Lora(LoraConfig::default())
}

fn qlora() -> TuningMethod {
    TuningMethod::Qlora(LoraConfig::default())
}

#[test]
fn less_memory_first_makes_smaller_passes_then_runs_layers_again_and_then_refuses() {
    let (base, method) = (llama_8b(), qlora());
    // In steps small enough that every size of pass has its turn.
    let step = GIB / 32;
    let decide = |steps: u64| question(&base, &method, steps * step).decide(full);
    let mut before: Option<Decision> = None;
    for steps in (4 * 32..400 * 32).rev() {
        let Ok(now) = decide(steps) else { continue };
        assert!(now.need.bytes <= steps * step);
        if let Some(before) = before {
            assert!(now.keeps_graphs <= before.keeps_graphs, "{steps}");
            assert!(now.token_budget <= before.token_budget || !now.keeps_graphs && before.keeps_graphs, "{steps}");
        }
        before = Some(now);
    }
    let roomy = decide(399 * 32).unwrap();
    assert_eq!((roomy.token_budget, roomy.keeps_graphs, roomy.pages_optimizer), (USUAL_TOKENS, true, false));
    let last = before.unwrap();
    // Smaller still would not help: here the reading of the base takes more than such a step.
    assert_eq!((last.token_budget, last.keeps_graphs), (BUSY_TOKENS, false));
    assert_eq!(last.need.stage, Stage::Loading);
    assert!(decide(4 * 32).is_err());
}

#[test]
fn what_changes_the_bits_does_not_depend_on_the_number_of_cores() {
    let (base, method) = (tiny(), lora());
    for megabytes in 60..120 {
        let with = |cores| {
            let question = Question { cores, parts: 16, ..question(&base, &method, megabytes << 20) };
            question.decide(|budget| Largest { micros: 16, ..full(budget) }).ok()
        };
        let (one, many) = (with(1), with(64));
        assert_eq!(one.as_ref().map(|one| one.token_budget), many.as_ref().map(|many| many.token_budget));
        assert!(many.is_none_or(|many| many.lanes <= 16 && many.need.bytes <= megabytes << 20));
    }
}

#[test]
fn what_the_caller_asks_for_is_kept_or_refused_with_the_numbers() {
    let (base, method) = (llama_8b(), qlora());
    let ask = |gib: u64, budget| Question { token_budget: Some(budget), ..question(&base, &method, gib * GIB) };
    assert_eq!(ask(40, 700).decide(full).unwrap().token_budget, 700);
    let refused = ask(40, 1 << 20).decide(full).unwrap_err();
    assert_eq!(refused.kind(), crate::error::Kind::Validation);
    for said in ["training may take 40.0 GiB", "The largest part is", "a smaller microBatchTokens than 1048576"] {
        assert!(refused.message().contains(said), "{refused}");
    }
}

#[test]
fn moments_leave_a_device_only_when_it_would_not_fit_otherwise_and_never_a_host() {
    let (base, method) = (llama_8b(), TuningMethod::Full);
    let mut paged = 0;
    for gib in 60..200 {
        let device = Memory { kind: MemoryKind::Device, bytes: gib * GIB };
        let on_device = Question { memory: device, ..question(&base, &method, 0) }.decide(full);
        if let Ok(decision) = &on_device {
            paged += u64::from(decision.pages_optimizer);
            let bytes =
                |need: &Need, kind: PartKind| need.parts.iter().find(|part| part.kind == kind).map(|part| part.bytes);
            assert_eq!(bytes(&decision.need, PartKind::Moments).is_some(), !decision.pages_optimizer);
            let trained = method.trained_values(&base);
            let pages = decision.pages_optimizer.then(|| Paging::USUAL.device_bytes(trained));
            assert_eq!(bytes(&decision.need, PartKind::Pages), pages);
            assert_eq!(decision.host.is_some(), decision.pages_optimizer);
            if let Some(host) = &decision.host {
                assert_eq!(bytes(host, PartKind::Moments), Some(8 * trained));
            }
        }
        assert!(!question(&base, &method, gib * GIB).decide(full).is_ok_and(|host| host.pages_optimizer));
    }
    assert!(paged > 20, "{paged}");
}

#[test]
fn moments_leave_a_device_only_for_a_machine_that_has_room_for_them() {
    let (base, method) = (llama_8b(), TuningMethod::Full);
    let device = Memory { kind: MemoryKind::Device, bytes: 80 * GIB };
    let ask = |host| Question { memory: device, host, ..question(&base, &method, 0) }.decide(full);
    let host = ask(1 << 40).unwrap().host.unwrap();
    assert!(ask(host.bytes).unwrap().pages_optimizer);
    let refused = ask(host.bytes - 1).unwrap_err();
    assert_eq!(refused.kind(), crate::error::Kind::Validation);
    let needed = format!("the job needs {}", Size(host.bytes));
    for said in ["has 80.0 GiB", needed.as_str(), "tuningMethod lora"] {
        assert!(refused.message().contains(said), "{refused}");
    }
    // What fits on the device asks nothing of the machine.
    let lora = lora();
    assert!(Question { memory: device, host: 0, ..question(&base, &lora, 0) }.decide(full).is_ok());
}

#[test]
fn slots_run_one_micro_batch_at_a_time_and_hold_gradients_of_their_own() {
    let (base, method) = (tiny(), lora());
    let ask = |slots| {
        let question = Question { slots, parts: 16, ..question(&base, &method, 4 * GIB) };
        question.decide(|budget| Largest { micros: 16, ..full(budget) }).unwrap()
    };
    assert_eq!((ask(1).lanes, ask(2).lanes), (2, 1));
    let gradients = |decision: &Decision| {
        let part = decision.need.parts.iter().find(|part| part.kind == PartKind::Gradients);
        part.map_or(0, |part| part.bytes)
    };
    assert_eq!(gradients(&ask(2)), 3 * 4 * method.trained_values(&base));
}

#[test]
fn gradients_stand_as_often_as_a_batch_has_parts_however_many_micro_batches_it_has() {
    let (base, method) = (tiny(), lora());
    let gradients = |micros| {
        let question = Question { parts: 4, ..question(&base, &method, 4 * GIB) };
        let need = question.decide(|budget| Largest { micros, ..full(budget) }).unwrap().need;
        need.parts.iter().find(|part| part.kind == PartKind::Gradients).map_or(0, |part| part.bytes)
    };
    let one = 4 * method.trained_values(&base);
    assert_eq!([2, 4, 64].map(gradients), [3 * one, 5 * one, 5 * one]);
}

#[test]
fn the_way_back_of_a_step_takes_weights_and_moments_and_on_a_device_the_weights_alone() {
    let (base, method) = (tiny(), lora());
    let of = |goes_back, kind| {
        let memory = Memory { kind, bytes: 4 * GIB };
        let question = Question { goes_back, memory, token_budget: Some(4096), ..question(&base, &method, 0) };
        let need = question.decide(full).unwrap().need;
        need.parts.iter().find(|part| part.kind == PartKind::Earlier).map_or(0, |part| part.bytes)
    };
    let one = 4 * method.trained_values(&base);
    assert_eq!([MemoryKind::Host, MemoryKind::Device].map(|kind| of(true, kind)), [3 * one, one]);
    assert_eq!(of(false, MemoryKind::Host), 0);
}

#[test]
fn what_can_never_fit_is_refused_with_what_would_help() {
    let base = llama_8b();
    let refused = refuse_the_impossible(&base, &settings(lora(), false), Memory::host(16 * GIB)).unwrap_err();
    for said in ["training may take 16.0 GiB here", "The largest part is base weights with", "qlora"] {
        assert!(refused.message().contains(said), "{refused}");
    }
    assert!(refuse_the_impossible(&base, &settings(qlora(), false), Memory::host(16 * GIB)).is_ok());
    let full = refuse_the_impossible(&base, &settings(TuningMethod::Full, false), Memory::host(100 * GIB)).unwrap_err();
    assert!(full.message().contains("tuningMethod lora, which takes"), "{full}");
}

#[test]
fn a_certain_need_is_never_more_than_an_estimated_one() {
    for base in [tiny(), llama_8b()] {
        for method in [lora(), qlora(), TuningMethod::Full, TuningMethod::Head] {
            let needed = |bytes: u64| {
                refuse_the_impossible(&base, &settings(method.clone(), true), Memory::host(bytes)).is_err()
            };
            let decided = |bytes: u64| {
                let question = Question { longest: 2, keeps_best: true, ..question(&base, &method, bytes) };
                question.decide(|budget| Largest { rows: budget.max(2), ..full(2) }).is_ok()
            };
            for shift in 20..40 {
                assert!(!(needed(1 << shift) && decided(1 << shift)), "{method:?} in {}", Size(1 << shift));
            }
        }
    }
}

#[test]
fn a_value_head_takes_its_weights_and_three_times_the_states_and_nothing_else() {
    let (base, method) = (tiny(), lora());
    let need = |has_values| {
        let question = Question { has_values, token_budget: Some(4096), ..question(&base, &method, 4 * GIB) };
        question.decide(full).unwrap().need
    };
    let of = |need: &Need, kind| need.parts.iter().filter(|part| part.kind == kind).map(|part| part.bytes).sum::<u64>();
    let (without, with) = (need(false), need(true));
    for (kind, more) in [(PartKind::Trained, 4 * 64), (PartKind::Moments, 8 * 64), (PartKind::Weights, 0)] {
        assert_eq!(of(&with, kind) - of(&without, kind), more, "{kind}");
    }
    let states = 3 * 4 * 4096 * 64;
    assert!(with.bytes > without.bytes && with.bytes - without.bytes <= states + 16 * 64, "{with:?} {without:?}");
}
