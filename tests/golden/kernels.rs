//! Every kernel against PyTorch in float64 (`kernels.py`), values and gradients.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, Var};
use tunesmith::kernels::{self, Activation, Gradients, Spans, Weight};

/// The tensors of one fixture by name.
struct Golden(HashMap<String, Tensor>);

impl Golden {
    fn load(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fixtures/kernels");
        Self(candle_core::safetensors::load(folder.join(format!("{name}.safetensors")), &Device::Cpu).unwrap())
    }

    fn get(&self, name: &str) -> &Tensor {
        &self.0[name]
    }

    fn values(&self, name: &str) -> Vec<f32> {
        self.get(name).flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Runs `op` on the named inputs and holds its value, and the gradient of every input, to the fixture.
    #[track_caller]
    fn check(&self, inputs: &[&str], op: impl Fn(&[Tensor]) -> Result<Tensor>) {
        let vars: Vec<Var> = inputs.iter().map(|name| Var::from_tensor(self.get(name)).unwrap()).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let y = op(&tensors).unwrap();
        assert_close("y", &y, self.get("y"));
        let grads = (y * self.get("dy")).unwrap().sum_all().unwrap().backward().unwrap();
        for (name, tensor) in inputs.iter().zip(&tensors) {
            let name = format!("d{name}");
            assert_close(&name, grads.get(tensor).unwrap(), self.get(&name));
        }
    }
}

/// Within 1e-5 of the largest expected value: sums of f32 cannot promise each small element more.
#[track_caller]
fn assert_close(name: &str, got: &Tensor, want: &Tensor) {
    assert_eq!(got.dims(), want.dims(), "{name}");
    let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (got, want) = (flat(got), flat(want));
    let size = want.iter().fold(1e-3f32, |size, value| size.max(value.abs()));
    for (index, (got, want)) in got.iter().zip(&want).enumerate() {
        assert!((got - want).abs() <= 1e-5 * size, "{name} at {index}: {got}, torch says {want}");
    }
}

#[test]
fn linear_equals_torch() {
    Golden::load("linear").check(&["x", "weight", "bias"], |t| kernels::linear(&t[0], &t[1], Some(&t[2])));
}

#[test]
fn a_weight_in_bf16_multiplies_as_torchs_does() {
    let golden = Golden::load("linear_bf16");
    let weight = Weight::packed(golden.get("weight")).unwrap();
    let x = Var::from_tensor(golden.get("x")).unwrap();
    let y = weight.apply(&x, None).unwrap();
    let grads = (&y * golden.get("dy")).unwrap().sum_all().unwrap().backward().unwrap();
    for (name, got) in [("y", &y), ("dx", grads.get(&x).unwrap())] {
        let got = got.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (index, (got, want)) in got.iter().zip(golden.values(name)).enumerate() {
            // torch rounds the sum to bf16, by at most half a unit; sums of about 12 in f32 differ by 1e-5.
            let bound = want.abs() / 256.0 + 1e-5;
            assert!((got - want).abs() <= bound, "{name} at {index}: {got}, torch says {want}");
        }
    }
}

#[test]
fn lora_linear_equals_the_layer_of_peft() {
    let golden = Golden::load("lora_linear");
    let (weight, bias) = (golden.get("weight").clone().into(), golden.get("bias"));
    golden.check(&["x", "a", "b"], |t| kernels::lora_linear(&t[0], &weight, Some(bias), &t[1], &t[2], 6.0 / 4.0, None));
}

#[test]
fn rms_norm_with_an_offset_equals_that_of_gemma() {
    Golden::load("rms_norm_offset").check(&["x", "weight"], |t| kernels::rms_norm(&t[0], &t[1], 1e-5, 1.0));
}

#[test]
fn rms_norm_equals_torch() {
    Golden::load("rms_norm").check(&["x", "weight"], |t| kernels::rms_norm(&t[0], &t[1], 1e-5, 0.0));
}

#[test]
fn rope_equals_the_rotation_of_transformers() {
    let golden = Golden::load("rope");
    golden.check(&["x"], |t| kernels::rope(&t[0], golden.get("cos"), golden.get("sin")));
}

#[test]
fn gated_activations_equal_torch() {
    for (name, activation) in [("swiglu", Activation::Silu), ("geglu", Activation::GeluTanh)] {
        Golden::load(name).check(&["gate", "up"], |t| kernels::gated(&t[0], &t[1], activation));
    }
}

#[test]
fn attention_equals_torch_record_by_record() {
    let cases = [
        ("attention", Spans::packed(&[3, 66]), None, None),
        ("attention_window", Spans::packed(&[5, 66]), Some(20), None),
        ("attention_cache", Spans::with_cache(&[1, 4], &[30, 9]).unwrap(), None, None),
        ("attention_softcap", Spans::packed(&[3, 40]), Some(12), Some(1.5)),
    ];
    for (name, spans, window, softcap) in cases {
        Golden::load(name)
            .check(&["q", "k", "v"], |t| kernels::attention(&t[0], &t[1], &t[2], &spans, 0.35, window, softcap));
    }
}

#[test]
fn embedding_equals_torch() {
    let golden = Golden::load("embedding");
    let ids = golden.get("ids").to_dtype(DType::U32).unwrap();
    golden.check(&["table"], |t| kernels::embedding(&t[0], &ids));
}

#[test]
fn linear_cross_entropy_equals_torch_row_by_row() {
    assert_losses("linear_cross_entropy", None);
    assert_losses("linear_cross_entropy_softcap", Some(3.0));
}

#[track_caller]
fn assert_losses(name: &str, softcap: Option<f64>) {
    let golden = Golden::load(name);
    let labels: Vec<Option<u32>> =
        golden.values("labels").iter().map(|label| (*label >= 0.0).then_some(*label as u32)).collect();
    let scales = golden.values("scales");
    let (hidden, weight) = (golden.get("hidden"), golden.get("weight"));
    let got =
        kernels::linear_cross_entropy(hidden, weight, &labels, Some(&scales), softcap, Gradients::HiddenAndWeight)
            .unwrap();
    let rows = got.token_losses.len();
    assert_close("losses", &Tensor::from_vec(got.token_losses, rows, &Device::Cpu).unwrap(), golden.get("losses"));
    assert_close("dhidden", &got.grad_hidden, golden.get("dhidden"));
    assert_close("dweight", &got.grad_weight.unwrap(), golden.get("dweight"));
    let sum: f64 = golden.values("losses").iter().zip(&scales).map(|(l, s)| f64::from(*l) * f64::from(*s)).sum();
    assert!((got.loss_sum - sum).abs() < 1e-4, "{}, torch says {sum}", got.loss_sum);
}

#[test]
fn nf4_has_the_codes_and_the_constants_of_bitsandbytes_bit_for_bit() {
    let golden = Golden::load("nf4");
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&kernels::LEVELS), bits(&golden.values("quant_map")));
    assert_eq!(bits(&*kernels::DYNAMIC_MAP), bits(&golden.values("nested_quant_map")));
    for name in ["w0", "w1", "w2"] {
        let (rows, columns) = golden.get(name).dims2().unwrap();
        let bytes = |part: &str| golden.get(&format!("{name}.{part}")).flatten_all().unwrap().to_vec1::<u8>().unwrap();
        let floats = |part: &str| golden.values(&format!("{name}.{part}"));
        let quantized = kernels::Nf4::quantize(&golden.values(name), rows, columns).unwrap();
        let parts = quantized.parts();
        assert!(parts.codes == bytes("codes"), "{name}: codes");
        assert_eq!(bits(&[parts.offset]), bits(&floats("nested_offset")), "{name}: offset");
        assert!(parts.magnitudes == bytes("absmax"), "{name}: codes of the magnitudes");
        assert_eq!(bits(parts.nested), bits(&floats("nested_absmax")), "{name}: nested magnitudes");
        // A zero may carry either sign.
        let unsigned = |values: Vec<f32>| bits(&values.into_iter().map(|value| value + 0.0).collect::<Vec<_>>());
        assert_eq!(unsigned(quantized.dequantize()), unsigned(floats("dequantised")), "{name}: values");
    }
}
