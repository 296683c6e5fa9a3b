//! What was measured, as a table and as JSON.

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};

/// One number.
pub struct Figure {
    name: String,
    unit: &'static str,
    value: f64,
    goal: Option<Goal>,
}

#[derive(Clone, Copy)]
enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Figure {
    /// A number that is only told.
    pub fn plain(name: &str, unit: &'static str, value: f64) -> Self {
        Self { name: name.to_owned(), unit, value, goal: None }
    }

    /// A number that should not be smaller.
    pub fn at_least(name: &str, unit: &'static str, value: f64, goal: f64) -> Self {
        Self::plain(name, unit, value).should_be_at_least(goal)
    }

    /// A number that should not be larger.
    pub fn at_most(name: &str, unit: &'static str, value: f64, goal: f64) -> Self {
        Self::plain(name, unit, value).should_be_at_most(goal)
    }

    /// It should not be smaller than this.
    pub fn should_be_at_least(self, goal: f64) -> Self {
        Self { goal: Some(Goal::AtLeast(goal)), ..self }
    }

    /// It should not be larger than this.
    pub fn should_be_at_most(self, goal: f64) -> Self {
        Self { goal: Some(Goal::AtMost(goal)), ..self }
    }

    /// Whether there is a goal for it.
    pub fn has_goal(&self) -> bool {
        self.goal.is_some()
    }

    fn goal(&self) -> String {
        match self.goal {
            Some(Goal::AtLeast(goal)) => format!("at least {goal}"),
            Some(Goal::AtMost(goal)) => format!("at most {goal}"),
            None => String::new(),
        }
    }

    fn is_reached(&self) -> Option<bool> {
        Some(match self.goal? {
            Goal::AtLeast(goal) => self.value >= goal,
            Goal::AtMost(goal) => self.value <= goal,
        })
    }
}

/// The figures for people.
pub fn table<'f>(figures: impl IntoIterator<Item = &'f Figure>) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_BORDERS_ONLY).set_header(["what", "figure", "", "goal", "reached"]);
    for figure in figures {
        let reached = figure.is_reached().map_or("", |reached| if reached { "yes" } else { "no" });
        let value = if figure.value < 100.0 { format!("{:.2}", figure.value) } else { format!("{:.0}", figure.value) };
        table.add_row([figure.name.as_str(), &value, figure.unit, &figure.goal(), reached]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The figures for programs.
pub fn json(figures: &[Figure]) -> serde_json::Value {
    let figures = figures.iter().map(|figure| {
        serde_json::json!({
            "what": figure.name, "unit": figure.unit, "value": figure.value, "goal": figure.goal(),
            "reached": figure.is_reached(),
        })
    });
    figures.collect()
}

/// The middle one.
pub fn median(values: &mut [f64]) -> f64 {
    percentile(values, 0.5)
}

/// The value that this share of them is not above.
pub fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = (values.len() as f64 * share) as usize;
    values[place.min(values.len() - 1)]
}
