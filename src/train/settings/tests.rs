//! What the wire's strings become, and what is said about wrong ones.

use super::*;
use crate::models::Projection;
use crate::train::objective::PpoConfig;
use crate::train::reinforcement::Algorithm;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

fn parse(pairs: &[(&str, &str)]) -> Result<Settings> {
    Settings::parse(&map(pairs), &BTreeMap::new())
}

fn message(pairs: &[(&str, &str)]) -> String {
    parse(pairs).unwrap_err().message().into()
}

#[test]
fn numbers_are_read_however_clients_write_them() {
    let settings = parse(&[
        ("epochCount", "20.0"),
        ("batchSize", " 1e1 "),
        ("learningRate", "0.00001"),
        ("learningRateMultiplier", "2"),
        ("tuningMethod", "LoRA"),
        ("rsLora", "True"),
        ("loraTargetModules", "v_proj, q_proj"),
        ("learningRateSchedule", "Cosine"),
    ])
    .unwrap();
    assert_eq!((settings.epoch_count, settings.batch_size, settings.schedule), (20, 10, Schedule::Cosine));
    assert!((settings.learning_rate - 2e-5).abs() < 1e-18);
    let TuningMethod::Lora(lora) = settings.method else { panic!("not lora") };
    assert_eq!((lora.targets, lora.rank_stabilized), (vec![Projection::Query, Projection::Value], true));
}

#[test]
fn auto_is_the_same_as_leaving_it_out() {
    assert_eq!(parse(&[("epochCount", "Auto"), ("stepCount", "auto")]).unwrap(), parse(&[]).unwrap());
}

#[test]
fn every_wrong_value_is_named_with_its_range_in_one_answer() {
    let text = message(&[("epochCount", "0"), ("batchSize", "1.5"), ("learningRate", "fast"), ("rsLora", "yes")]);
    assert_eq!(
        text,
        "Invalid hyperParameters: batchSize is \"1.5\" but must be a whole number from 1 to 8192; epochCount is \
         \"0\" but must be a whole number from 1 to 1000; learningRate is \"fast\" but must be a number from 1e-8 \
         to 1; rsLora is \"yes\" but must be true or false"
    );
    for wrong in ["nan", "inf", "-1", "", "1e400", "0x10"] {
        assert!(message(&[("learningRate", wrong)]).contains("learningRate"), "{wrong}");
    }
}

#[test]
fn an_unknown_name_is_refused_and_a_near_one_suggested() {
    assert!(message(&[("epochcount", "1")]).contains("did you mean epochCount?"));
    let text = message(&[("epocs", "1")]);
    assert!(text.contains("\"epocs\" is not known; known are epochCount, batchSize"), "{text}");
    assert!(message(&[("loraTargetModules", "q_proj,lm_head")]).contains("all-linear, or some of q_proj"));
}

#[test]
fn steps_and_epochs_together_are_a_contradiction() {
    assert!(message(&[("stepCount", "10"), ("epochCount", "1")]).contains("not both"));
}

#[test]
fn a_models_own_defaults_stand_behind_the_callers_values() {
    let defaults = map(&[("learningRate", "3e-3"), ("epochCount", "7"), ("stepCount", "50")]);
    let settings = Settings::parse(&map(&[("epochCount", "2")]), &defaults).unwrap();
    assert_eq!((settings.epoch_count, settings.learning_rate, settings.step_count), (2, 3e-3, None));
    let wrong = Settings::parse(&BTreeMap::new(), &map(&[("batchSize", "0")])).unwrap_err();
    assert!(wrong.message().starts_with("The base model's default hyperparameters are wrong: batchSize"), "{wrong}");
}

#[test]
fn early_stopping_is_on_when_either_of_its_names_is_set() {
    assert_eq!(parse(&[]).unwrap().early_stopping, None);
    let one = parse(&[("earlyStoppingPatience", "4")]).unwrap().early_stopping;
    assert_eq!(one, Some(EarlyStopping { threshold: 0.001, patience: 4 }));
    let other = parse(&[("earlyStoppingThreshold", "0")]).unwrap().early_stopping;
    assert_eq!(other, Some(EarlyStopping { threshold: 0.0, patience: 2 }));
}

#[test]
fn the_documentation_has_a_line_for_every_name() {
    let text = Settings::markdown();
    for setting in Settings::table() {
        assert!(text.contains(&format!("| `{}` | {} | ", setting.name, setting.range())));
    }
}

#[test]
fn every_method_has_a_learning_rate_of_its_own_and_only_its_own_options() {
    let rate = |method| parse(&[("tuningMethod", method)]).unwrap().learning_rate;
    let rates = ["lora", "adapter", "prefix", "prompt", "llama_adapter", "full"].map(rate);
    assert_eq!(rates, [2e-4, 1e-4, 1e-3, 1e-2, 9e-3, 2e-5]);
    for (given, said) in [
        (
            vec![("tuningMethod", "prefix"), ("loraRank", "4")],
            "loraRank is an option of tuningMethod lora or qlora, not of prefix",
        ),
        (vec![("virtualTokens", "4")], "virtualTokens is an option of tuningMethod prefix or prompt, not of lora"),
        (vec![("tuningMethod", "bitfit")], "tuningMethod is \"bitfit\" but must be lora, qlora, adapter, prefix"),
        (vec![("tuningMethod", "adapter"), ("adapterReductionFactor", "0")], "must be a number from 1 to 4096"),
        (vec![("tuningMethod", "prefix"), ("prefixHiddenSize", "4")], "no effect without prefixProjection"),
        (
            vec![("tuningMethod", "prefix"), ("prefixProjection", "true"), ("virtualTokensInit", "random")],
            "leave virtualTokensInit and virtualTokensText out",
        ),
        (
            vec![("tuningMethod", "prompt"), ("virtualTokensInit", "random"), ("virtualTokensText", "x")],
            "no effect with virtualTokensInit random",
        ),
    ] {
        let text = message(&given);
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn a_models_defaults_for_one_method_are_not_those_of_another() {
    let defaults =
        map(&[("epochCount", "8"), ("loraRank", "4"), ("lora.learningRate", "0.5"), ("prefix.virtualTokens", "3")]);
    let settings = |given: &[(&str, &str)]| Settings::parse(&map(given), &defaults).unwrap();
    assert_eq!((settings(&[]).learning_rate, settings(&[]).epoch_count), (0.5, 8));
    assert!(!settings(&[("epochCount", "2")]).method_given, "a card's words are not the caller's");
    let prefix = settings(&[("tuningMethod", "prefix")]);
    assert_eq!((prefix.learning_rate, prefix.method.virtual_tokens(), prefix.method_given), (1e-3, 3, true));
    assert_eq!(settings(&[("tuningMethod", "prefix"), ("virtualTokens", "9")]).method.virtual_tokens(), 9);
}

#[test]
fn an_objective_has_a_learning_rate_of_its_own_and_only_its_own_options() {
    let rate = |given: &[(&str, &str)], defaults: &[(&str, &str)]| {
        (Settings::parse(&map(given), &map(defaults)).unwrap().learning_rate * 1e9).round()
    };
    let dpo = ("trainingObjective", "dpo");
    assert_eq!(rate(&[dpo], &[]), 1e4);
    assert_eq!(rate(&[dpo, ("tuningMethod", "full")], &[]), 1e3);
    assert_eq!(rate(&[("trainingObjective", "reward")], &[]), 1e5);
    assert_eq!(rate(&[dpo, ("learningRate", "0.01")], &[]), 1e7, "what the caller says is meant");
    // A card's rates are for supervised fine-tuning, unless it says that they are not.
    let card = [("lora.learningRate", "0.002"), ("dpo.learningRateMultiplier", "4")];
    assert_eq!(rate(&[dpo], &card), 4e5);
    assert_eq!(rate(&[], &card), 2e6);
    assert_eq!(rate(&[dpo, ("learningRate", "0.01")], &card), 1e7);
    assert_eq!(rate(&[dpo], &[("learningRate", "0.002"), ("dpo.learningRate", "0.001")]), 1e6);
    for (given, said) in [
        (vec![("dpoBeta", "0.1")], "dpoBeta is an option of trainingObjective dpo, not of sft"),
        (
            vec![("trainingObjective", "reward"), ("dpoLoss", "ipo")],
            "dpoLoss is an option of trainingObjective dpo, not of reward",
        ),
        (vec![("trainingObjective", "kto")], "trainingObjective is \"kto\" but must be sft, dpo, reward, grpo or ppo"),
        (vec![("klBeta", "0.1")], "klBeta is an option of trainingObjective grpo, not of sft"),
        (vec![("trainingObjective", "grpo"), ("lossAggregation", "mean")], "must be dapo, grpo or dr_grpo"),
        (vec![dpo, ("dpoLoss", "exo")], "must be sigmoid, robust, hinge or ipo"),
        (vec![dpo, ("dpoBeta", "0")], "dpoBeta is \"0\" but must be a number from 1e-4 to 100"),
        (vec![dpo, ("labelSmoothing", "0.5")], "must be a number from 0 to 0.499"),
        (vec![dpo, ("labelSmoothing", "0.1"), ("dpoLoss", "ipo")], "no effect with dpoLoss ipo"),
        (vec![dpo, ("dpoLoss", "robust")], "dpoLoss robust needs labelSmoothing"),
        (vec![("trainingObjective", "reward"), ("tuningMethod", "prefix")], "must be lora or qlora, not prefix"),
    ] {
        let text = message(&given);
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn an_algorithm_has_its_own_defaults_and_only_its_own_options() {
    let options = |given: &[(&str, &str)]| match parse(given).unwrap().objective {
        TrainingObjective::Reinforcement(options) => options,
        other => panic!("not reinforcement but {other:?}"),
    };
    let (grpo, ppo) = (options(&[("trainingObjective", "grpo")]), options(&[("trainingObjective", "ppo")]));
    assert_eq!((grpo.samples_per_prompt, grpo.updates_per_batch), (8, 1));
    assert_eq!((ppo.samples_per_prompt, ppo.updates_per_batch), (1, 4));
    assert_eq!(ppo.algorithm, Algorithm::Ppo(PpoConfig::default()));
    let PpoConfig { clip, value_clip, value_coef, kl_coef, gamma, lambda, temperature } = PpoConfig::default();
    assert_eq!(
        [clip, value_clip, value_coef, kl_coef, gamma, lambda, temperature],
        [0.2, 0.2, 0.1, 0.05, 1.0, 0.95, 1.0]
    );
    assert_eq!(ppo, options(&[("trainingObjective", "ppo"), ("rlAlgorithm", "PPO")]));

    let (of_grpo, of_ppo) = (("trainingObjective", "grpo"), ("trainingObjective", "ppo"));
    for (given, said) in [
        (vec![of_ppo, ("klBeta", "0.1")], "klBeta is an option of rlAlgorithm grpo, not of ppo"),
        (vec![of_ppo, ("clipEpsilonHigh", "0.3")], "clipEpsilonHigh is an option of rlAlgorithm grpo, not of ppo"),
        (vec![of_ppo, ("lossAggregation", "dapo")], "lossAggregation is an option of rlAlgorithm grpo, not of ppo"),
        (vec![of_ppo, ("advantageScaling", "none")], "advantageScaling is an option of rlAlgorithm grpo, not of ppo"),
        (vec![of_grpo, ("klCoef", "0.1")], "klCoef is an option of rlAlgorithm ppo, not of grpo"),
        (vec![of_grpo, ("gaeLambda", "1")], "gaeLambda is an option of rlAlgorithm ppo, not of grpo"),
        (vec![("gaeGamma", "1")], "gaeGamma is an option of trainingObjective ppo, not of sft"),
        (vec![("rlAlgorithm", "ppo")], "rlAlgorithm is an option of trainingObjective grpo or ppo, not of sft"),
        (vec![of_grpo, ("rlAlgorithm", "ppo")], "rlAlgorithm ppo and trainingObjective grpo contradict each other"),
        (vec![of_grpo, ("rlAlgorithm", "rloo")], "rlAlgorithm is \"rloo\" but must be grpo or ppo"),
        (vec![of_grpo, ("trainingSamplePerPrompt", "1")], "give 2 or more, or set rlAlgorithm ppo"),
        (vec![of_ppo, ("trainingSamplePerPrompt", "0")], "must be a whole number from 1 to 64"),
        (vec![of_ppo, ("gaeLambda", "1.1")], "gaeLambda is \"1.1\" but must be a number from 0 to 1"),
        (vec![of_ppo, ("valueLossCoef", "-1")], "valueLossCoef is \"-1\" but must be a number from 0 to 100"),
        (vec![of_ppo, ("valueClipEpsilon", "x")], "valueClipEpsilon is \"x\" but must be a number from 0"),
        (vec![of_ppo, ("klCoef", "-0.1")], "klCoef is \"-0.1\" but must be a number from 0 to 100"),
    ] {
        let text = message(&given);
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn only_what_can_be_put_into_the_base_is_merged() {
    for pairs in [&[("mergedWeights", "true")][..], &[("mergedWeights", "true"), ("tuningMethod", "head")]] {
        assert!(parse(pairs).unwrap().merged_weights);
    }
    assert!(!parse(&[("mergedWeights", "false"), ("tuningMethod", "prefix")]).unwrap().merged_weights);
    for (pairs, said) in [
        (("tuningMethod", "prompt"), "what tuningMethod prompt learns cannot be merged here: a soft prompt is"),
        (("tuningMethod", "full"), "a fully tuned model is whole already"),
        (("trainingObjective", "reward"), "a reward model's head has no place"),
    ] {
        let text = message(&[("mergedWeights", "true"), pairs]);
        assert!(text.starts_with("mergedWeights true: ") && text.contains(said), "{text}");
    }
    let mut nf4 = DecoderConfig::read(std::path::Path::new("assets/starter")).unwrap();
    let settings = parse(&[("mergedWeights", "true")]).unwrap();
    assert!(settings.check_merging_into(&nf4).is_ok());
    nf4.nf4 = true;
    assert!(settings.check_merging_into(&nf4).unwrap_err().message().contains("is quantised"));
}
