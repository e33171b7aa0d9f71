//! Plots for docs/performance.md.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;

const SIZE: (u32, u32) = (760, 320);

/// Draws a bar for each name, on a logarithmic scale, with its value at the end.
pub(crate) fn bars(path: &Path, title: &str, bars: &[(String, f64)]) -> Result<()> {
    let max = bars.iter().map(|(_, value)| *value).fold(1.0, f64::max);
    let min = bars.iter().map(|(_, value)| *value).fold(1.0, f64::min);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(24)
        .y_label_area_size(80)
        .build_cartesian_2d((min / 2.0..max * 4.0).log_scale(), 0..bars.len())?;
    let name = |row: &usize| {
        let bar = bars
            .len()
            .checked_sub(row + 1)
            .and_then(|row| bars.get(row));
        bar.map_or(String::new(), |(name, _)| name.clone())
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(bars.len())
        .y_label_formatter(&name)
        .draw()?;
    for (row, (name, value)) in bars.iter().rev().enumerate() {
        let fill = if name == "sluice" {
            BLUE.mix(0.8)
        } else {
            BLACK.mix(0.35)
        };
        let bar = [(min / 2.0, row), (*value, row + 1)];
        let mut bar = Rectangle::new(bar, fill.filled());
        bar.set_margin(5, 5, 0, 0);
        chart.draw_series([bar])?;
        let text = format!("{value:.3}");
        let text = text.trim_end_matches('0').trim_end_matches('.').to_owned();
        let font = ("sans-serif", 13).into_font();
        chart.draw_series([Text::new(text, (*value * 1.05, row + 1), font)])?;
    }
    root.present()?;
    Ok(())
}

/// Draws a line through these points.
pub(crate) fn line(path: &Path, title: &str, points: &[(f64, f64)]) -> Result<()> {
    let right = points.iter().map(|(x, _)| *x).fold(0.1, f64::max);
    let top = points.iter().map(|(_, y)| *y).fold(1.0, f64::max);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(28)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..right, 0.0..top * 1.2)?;
    chart.configure_mesh().x_desc("minutes").draw()?;
    chart.draw_series(LineSeries::new(points.iter().copied(), &BLUE))?;
    root.present()?;
    Ok(())
}
