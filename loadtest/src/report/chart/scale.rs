//! The scale of an axis: values to pixels, and round values for labels.

use super::Axis;

/// Approximate number of labels of an axis.
const TICKS: f64 = 5.0;

/// Maps values to pixels.
pub(super) struct Scale {
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) log: bool,
    pub(super) pixels: (f64, f64),
}

impl Scale {
    /// Returns a scale that has all finite `values`; `None` if there are none.
    pub(super) fn new(
        axis: &Axis,
        values: impl Iterator<Item = f64>,
        pixels: (f64, f64),
    ) -> Option<Self> {
        let usable = |value: &f64| value.is_finite() && (!axis.log || *value > 0.0);
        let mut found = false;
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(usable).inspect(|_| found = true) {
            (low, high) = (low.min(value), high.max(value));
        }
        if !found {
            return None;
        }
        for value in axis.include.iter().filter(|value| usable(value)) {
            (low, high) = (low.min(*value), high.max(*value));
        }
        if low == high {
            (low, high) = if axis.log { (low / 2.0, high * 2.0) } else { (low - 0.5, high + 0.5) };
        } else if !axis.log && axis.include.contains(&0.0) {
            high += 0.05 * (high - low);
        }
        Some(Self { low, high, log: axis.log, pixels })
    }

    pub(super) fn has(&self, value: f64) -> bool {
        !self.log || value > 0.0
    }

    pub(super) fn pixel(&self, value: f64) -> f64 {
        let of = |value: f64| if self.log { value.ln() } else { value };
        let share = (of(value) - of(self.low)) / (of(self.high) - of(self.low));
        self.pixels.0 + share.clamp(0.0, 1.0) * (self.pixels.1 - self.pixels.0)
    }

    /// Returns round values within the scale.
    pub(super) fn ticks(&self) -> Vec<f64> {
        if self.log {
            let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
            let factors: &[f64] =
                if decades.clone().count() > 4 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let all =
                decades.flat_map(|decade| factors.iter().map(move |f| f * 10f64.powi(decade)));
            let mut ticks: Vec<_> = all.filter(|at| (self.low..=self.high).contains(at)).collect();
            if ticks.len() < 2 {
                ticks = vec![self.low, self.high];
            }
            return ticks;
        }
        let raw = (self.high - self.low).abs() / TICKS;
        let magnitude = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].iter().map(|f| f * magnitude).find(|step| *step >= raw);
        let step = step.unwrap_or(raw);
        let first = (self.low / step).ceil();
        let count = ((self.high / step).floor() - first).max(0.0) as usize;
        (0..=count).map(|i| (first + i as f64) * step).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale(log: bool, low: f64, high: f64) -> Scale {
        Scale { low, high, log, pixels: (0.0, 100.0) }
    }

    #[test]
    fn ticks_are_round_and_within_the_scale() {
        assert_eq!(scale(false, 0.0, 10.0).ticks(), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(scale(false, 0.0, 37.0).ticks(), [0.0, 10.0, 20.0, 30.0]);
        assert_eq!(scale(true, 0.01, 0.1).ticks().len(), 4);
        assert_eq!(scale(true, 0.03, 0.04).ticks(), [0.03, 0.04]);
        assert_eq!(scale(true, 0.001, 100.0).ticks().len(), 6);
        assert_eq!(
            [1.0, 10.0, 100.0].map(|at| scale(true, 1.0, 100.0).pixel(at)),
            [0.0, 50.0, 100.0]
        );
    }
}
