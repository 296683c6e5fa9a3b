//! The measured figures, as a table and as JSON.

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};

/// One measured number.
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
    /// A number without a goal.
    pub fn plain(name: &str, unit: &'static str, value: f64) -> Self {
        Self { name: name.to_owned(), unit, value, goal: None }
    }

    /// A number that should be at least `goal`.
    pub fn at_least(name: &str, unit: &'static str, value: f64, goal: f64) -> Self {
        Self::plain(name, unit, value).should_be_at_least(goal)
    }

    /// A number that should be at most `goal`.
    pub fn at_most(name: &str, unit: &'static str, value: f64, goal: f64) -> Self {
        Self::plain(name, unit, value).should_be_at_most(goal)
    }

    /// Sets the goal: at least this number.
    pub fn should_be_at_least(self, goal: f64) -> Self {
        Self { goal: Some(Goal::AtLeast(goal)), ..self }
    }

    /// Sets the goal: at most this number.
    pub fn should_be_at_most(self, goal: f64) -> Self {
        Self { goal: Some(Goal::AtMost(goal)), ..self }
    }

    /// True if the figure has a goal.
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

/// The figures as a table, for people.
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

/// The figures as JSON, for programs.
pub fn json(figures: &[Figure]) -> serde_json::Value {
    let figures = figures.iter().map(|figure| {
        serde_json::json!({
            "what": figure.name, "unit": figure.unit, "value": figure.value, "goal": figure.goal(),
            "reached": figure.is_reached(),
        })
    });
    figures.collect()
}

/// The median of the values, which are sorted on the way.
pub fn median(values: &mut [f64]) -> f64 {
    percentile(values, 0.5)
}

/// The value at a share of the sorted values: 0.99 for p99. Sorts the values.
pub fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = (values.len() as f64 * share) as usize;
    values[place.min(values.len() - 1)]
}
