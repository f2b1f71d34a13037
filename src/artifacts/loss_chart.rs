//! The loss as a picture: training and validation curves over the steps, as SVG that any browser
//! shows. Text is drawn in whatever sans-serif font the viewer has.

use std::fmt::Write;

/// One curve.
#[derive(Debug, Clone, Copy)]
pub struct Curve<'a> {
    /// What the legend calls it.
    pub name: &'a str,
    /// Stroke colour.
    pub color: &'a str,
    /// (step, loss) in rising order of steps; values that are not finite leave a gap.
    pub points: &'a [(u64, f64)],
}

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 400.0;
/// The plot's edges: room for the numbers on the left and below, for the legend above.
const LEFT: f64 = 64.0;
const RIGHT: f64 = WIDTH - 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = HEIGHT - 48.0;
/// More points than this cannot be told apart; a long run is thinned by averaging.
const POINTS: usize = 800;

/// The picture of `curves`.
pub fn loss_chart(curves: &[Curve<'_>]) -> String {
    let finite = || curves.iter().flat_map(|curve| curve.points).filter(|(_, loss)| loss.is_finite());
    let last_step = finite().map(|(step, _)| *step).max().unwrap_or(0).max(1);
    let highest = finite().map(|(_, loss)| *loss).fold(0.0, f64::max);
    let (tick, top) = ticks(highest);
    let x = |step: u64| LEFT + (RIGHT - LEFT) * step as f64 / last_step as f64;
    let y = |loss: f64| BOTTOM - (BOTTOM - TOP) * loss / top;

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\" fill=\"#444\">\n<title>Loss per step</title>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n"
    );
    // Writing into a String cannot fail.
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = svg.write_fmt(text);
    };
    let mut loss = 0.0;
    while loss <= top * 1.0001 {
        let at = y(loss);
        line(format_args!("<path d=\"M{LEFT} {at:.1}H{RIGHT}\" stroke=\"#ddd\"/>\n"));
        line(format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            LEFT - 8.0,
            at + 4.0,
            short(loss)
        ));
        loss += tick;
    }
    let stride = whole_ticks(last_step);
    for step in (0..=last_step).step_by(usize::try_from(stride).unwrap_or(usize::MAX)) {
        let at = x(step);
        line(format_args!("<path d=\"M{at:.1} {BOTTOM}v5\" stroke=\"#888\"/>\n"));
        line(format_args!("<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{step}</text>\n", BOTTOM + 20.0));
    }
    line(format_args!("<path d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\" fill=\"none\" stroke=\"#888\"/>\n"));
    line(format_args!(
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">step</text>\n",
        (LEFT + RIGHT) / 2.0,
        HEIGHT - 10.0
    ));
    line(format_args!(
        "<text transform=\"translate(16 {:.1}) rotate(-90)\" text-anchor=\"middle\">loss (nats per token)</text>\n",
        (TOP + BOTTOM) / 2.0
    ));
    for (curve, left) in curves.iter().filter(|curve| !curve.points.is_empty()).zip([LEFT, LEFT + 140.0, LEFT + 280.0])
    {
        let Curve { name, color, points } = curve;
        let path = path(&thinned(points), x, y);
        line(format_args!(
            "<path d=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\" stroke-linejoin=\"round\"/>\n"
        ));
        if points.len() < 60 {
            for (step, loss) in points.iter().filter(|(_, loss)| loss.is_finite()) {
                line(format_args!(
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\" fill=\"{color}\"/>\n",
                    x(*step),
                    y(*loss)
                ));
            }
        }
        line(format_args!("<path d=\"M{left} 22h24\" stroke=\"{color}\" stroke-width=\"3\"/>\n"));
        line(format_args!("<text x=\"{:.1}\" y=\"26\">{name}</text>\n", left + 30.0));
    }
    svg.push_str("</svg>\n");
    svg
}

/// Line segments through the finite points; a gap begins a new one.
fn path(points: &[(u64, f64)], x: impl Fn(u64) -> f64, y: impl Fn(f64) -> f64) -> String {
    let mut path = String::new();
    let mut pen_down = false;
    for (step, loss) in points {
        if !loss.is_finite() {
            pen_down = false;
            continue;
        }
        let _ = write!(path, "{}{:.1} {:.1}", if pen_down { 'L' } else { 'M' }, x(*step), y(*loss));
        pen_down = true;
    }
    path
}

/// At most [`POINTS`] points, each the mean of its neighbourhood.
fn thinned(points: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let size = points.len().div_ceil(POINTS).max(1);
    let mean = |chunk: &[(u64, f64)]| {
        let sum: f64 = chunk.iter().map(|(_, loss)| loss).sum();
        (chunk[chunk.len() / 2].0, sum / chunk.len() as f64)
    };
    points.chunks(size).map(mean).collect()
}

/// Distance between marks and the last mark for values up to `highest`: about five, at 1, 2 or 5 times
/// a power of ten.
fn ticks(highest: f64) -> (f64, f64) {
    let rough = (highest / 5.0).max(1e-6);
    let power = 10f64.powf(rough.log10().floor());
    let tick = [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|tick| *tick >= rough).unwrap_or(rough);
    (tick, tick * (highest / tick).ceil().max(1.0))
}

/// The same for whole steps, about eight.
fn whole_ticks(last: u64) -> u64 {
    let rough = (last as f64 / 8.0).max(1.0);
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|tick| *tick >= rough).unwrap_or(rough) as u64
}

/// A mark's number without the noise of floating point.
fn short(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: &[(u64, f64)]) -> String {
        loss_chart(&[Curve { name: "training", color: "#06c", points }])
    }

    #[test]
    fn the_highest_loss_is_inside_and_marks_are_round_numbers() {
        assert_eq!(ticks(4.7), (1.0, 5.0));
        assert_eq!(ticks(0.033), (0.01, 0.04));
        assert_eq!((whole_ticks(3), whole_ticks(100), whole_ticks(4000)), (1, 20, 500));
        assert_eq!((short(0.30000000000000004), short(2.0)), ("0.3".into(), "2".into()));
    }

    #[test]
    fn a_value_that_is_not_finite_leaves_a_gap() {
        let svg = chart(&[(0, 2.0), (1, f64::NAN), (2, 1.0), (3, 0.5)]);
        let drawn = svg.lines().find(|line| line.contains("stroke-linejoin")).unwrap();
        assert_eq!((drawn.matches('M').count(), drawn.matches('L').count()), (2, 1), "{drawn}");
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn a_long_run_is_thinned_and_an_empty_one_still_has_axes() {
        let points: Vec<_> = (0..100_000).map(|step| (step, 3.0 / (1.0 + step as f64 / 1e4))).collect();
        assert!(chart(&points).len() < 40_000);
        assert!(chart(&[]).contains("loss (nats per token)"));
    }
}
