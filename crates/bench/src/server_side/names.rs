//! Which metric of which server means what. Powerband's server uses vLLM's names.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::prometheus::{label, samples};

/// Series of one text that are told apart; a server has some for each of its engines.
const MAX_SERIES: usize = 4096;
/// Largest value that is believed: sums of many of them stay finite and whole.
const MAX_VALUE: f64 = 1e15;

/// What one reading of a server's metrics says; `None` is what it does not.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Reading {
    pub running: Option<f64>,
    pub waiting: Option<f64>,
    /// 0 to 1; of the fullest engine where there are several.
    pub kv_cache_usage: Option<f64>,
    pub preemptions: Option<f64>,
    /// Sum, s, and number of the requests' times in the queue.
    pub queue_time_s: Option<f64>,
    pub queue_times: Option<f64>,
    /// Tokens that were looked up in the prefix cache, and found there.
    pub prefix_queries: Option<f64>,
    pub prefix_hits: Option<f64>,
    pub prompt_tokens: Option<f64>,
    pub generation_tokens: Option<f64>,
    /// Tokens of all steps, and the number of steps.
    pub iteration_tokens: Option<f64>,
    pub iterations: Option<f64>,
    /// The engine's steps, the seconds in which its device computed, and those in which it had requests.
    pub steps: Option<f64>,
    pub device_s: Option<f64>,
    pub working_s: Option<f64>,
}

/// How the series of a metric make one number.
#[derive(Clone, Copy, PartialEq)]
enum Join {
    Sum,
    /// A share from 0 to 1: the largest.
    Share,
}

impl Reading {
    /// What a text says; a line that is no sample, a value that cannot be and a series that was there before are
    /// left out.
    pub fn of(text: &str) -> Reading {
        let mut reading = Reading::default();
        let mut seen = HashSet::new();
        for sample in samples(text) {
            // Of a model that is spread over several GPUs each would report the same requests.
            let copy = ["tp_rank", "pp_rank"]
                .iter()
                .any(|rank| label(sample.labels, rank).is_some_and(|r| r != "0"));
            let value = sample.value;
            let Some((slot, join)) = reading.slot(sample.name) else {
                continue;
            };
            let most = if join == Join::Share { 1.0 } else { MAX_VALUE };
            if copy || !(0.0..=most).contains(&value) {
                continue;
            }
            let mut series = DefaultHasher::new();
            (sample.name, sample.labels).hash(&mut series);
            if seen.len() >= MAX_SERIES || !seen.insert(series.finish()) {
                continue;
            }
            *slot = Some(match (*slot, join) {
                (None, _) => value,
                (Some(so_far), Join::Sum) => so_far + value,
                (Some(so_far), Join::Share) => so_far.max(value),
            });
        }
        reading
    }

    /// Does it say anything?
    pub fn known(&self) -> bool {
        *self != Reading::default()
    }

    /// Where a metric belongs.
    fn slot(&mut self, name: &str) -> Option<(&mut Option<f64>, Join)> {
        let slot = match name {
            "vllm:num_requests_running"
            | "sglang:num_running_reqs"
            | "llamacpp:requests_processing"
            | "tgi_batch_current_size" => &mut self.running,
            "vllm:num_requests_waiting"
            | "sglang:num_queue_reqs"
            | "llamacpp:requests_deferred"
            | "tgi_queue_size" => &mut self.waiting,
            // vLLM had the second name until version 0.10, llama.cpp its own until 2025.
            "vllm:kv_cache_usage_perc"
            | "vllm:gpu_cache_usage_perc"
            | "sglang:token_usage"
            | "llamacpp:kv_cache_usage_ratio" => {
                return Some((&mut self.kv_cache_usage, Join::Share));
            }
            // SGLang calls it a retraction.
            "vllm:num_preemptions_total" | "sglang:num_retracted_requests_total" => {
                &mut self.preemptions
            }
            "vllm:request_queue_time_seconds_sum"
            | "sglang:queue_time_seconds_sum"
            | "tgi_request_queue_duration_sum" => &mut self.queue_time_s,
            "vllm:request_queue_time_seconds_count"
            | "sglang:queue_time_seconds_count"
            | "tgi_request_queue_duration_count" => &mut self.queue_times,
            "vllm:prefix_cache_queries_total" | "vllm:gpu_prefix_cache_queries_total" => {
                &mut self.prefix_queries
            }
            // SGLang has a series for each place of its cache, and looks up every prompt token.
            "vllm:prefix_cache_hits_total"
            | "vllm:gpu_prefix_cache_hits_total"
            | "sglang:cached_tokens_total" => &mut self.prefix_hits,
            "vllm:prompt_tokens_total"
            | "sglang:prompt_tokens_total"
            | "llamacpp:prompt_tokens_total"
            | "tgi_request_input_length_sum" => &mut self.prompt_tokens,
            "vllm:generation_tokens_total"
            | "sglang:generation_tokens_total"
            | "llamacpp:tokens_predicted_total"
            | "tgi_request_generated_tokens_sum" => &mut self.generation_tokens,
            "vllm:iteration_tokens_total_sum" => &mut self.iteration_tokens,
            "vllm:iteration_tokens_total_count" => &mut self.iterations,
            "powerband:engine_steps_total" => &mut self.steps,
            "powerband:device_seconds_total" => &mut self.device_s,
            "powerband:working_seconds_total" => &mut self.working_s,
            _ => return None,
        };
        Some((slot, Join::Sum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vllm() {
        let reading = Reading::of(
            "# TYPE vllm:num_requests_running gauge\n\
             vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 12.0\n\
             vllm:num_requests_running{engine=\"1\",model_name=\"m\"} 8.0\n\
             vllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 3.0\n\
             vllm:num_requests_waiting_by_reason{engine=\"0\",reason=\"capacity\"} 3.0\n\
             vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\"} 0.25\n\
             vllm:kv_cache_usage_perc{engine=\"1\",model_name=\"m\"} 0.75\n\
             vllm:num_preemptions_total{engine=\"0\",model_name=\"m\"} 4.0\n\
             vllm:num_preemptions_created{engine=\"0\",model_name=\"m\"} 1.7e+09\n\
             vllm:request_queue_time_seconds_bucket{le=\"0.3\"} 7.0\n\
             vllm:request_queue_time_seconds_sum{engine=\"0\"} 1.5\n\
             vllm:request_queue_time_seconds_count{engine=\"0\"} 10.0\n\
             vllm:prefix_cache_queries_total 100.0\nvllm:prefix_cache_hits_total 40.0\n\
             vllm:iteration_tokens_total_sum 640\nvllm:iteration_tokens_total_count 10\n",
        );
        assert_eq!(
            reading,
            Reading {
                running: Some(20.0),
                waiting: Some(3.0),
                kv_cache_usage: Some(0.75),
                preemptions: Some(4.0),
                queue_time_s: Some(1.5),
                queue_times: Some(10.0),
                prefix_queries: Some(100.0),
                prefix_hits: Some(40.0),
                iteration_tokens: Some(640.0),
                iterations: Some(10.0),
                ..Reading::default()
            }
        );
    }

    #[test]
    fn the_other_servers() {
        let sglang = Reading::of(
            "sglang:num_running_reqs{model_name=\"m\",tp_rank=\"0\"} 8\n\
             sglang:num_running_reqs{model_name=\"m\",tp_rank=\"1\"} 8\n\
             sglang:num_queue_reqs{model_name=\"m\"} 4\nsglang:token_usage{model_name=\"m\"} 0.52\n\
             sglang:num_retracted_reqs 1\nsglang:num_retracted_requests_total{model_name=\"m\"} 3\n\
             sglang:queue_time_seconds_sum 1.5\nsglang:queue_time_seconds_count 6\n\
             sglang:prompt_tokens_total 400\n\
             sglang:cached_tokens_total{cache_source=\"device\"} 80\n\
             sglang:cached_tokens_total{cache_source=\"host\"} 20\n",
        );
        assert_eq!(
            (sglang.preemptions, sglang.queue_time_s, sglang.queue_times),
            (Some(3.0), Some(1.5), Some(6.0))
        );
        assert_eq!(
            (sglang.prefix_hits, sglang.prefix_queries),
            (Some(100.0), None)
        );
        assert_eq!(
            (sglang.running, sglang.waiting, sglang.kv_cache_usage),
            (Some(8.0), Some(4.0), Some(0.52))
        );
        let llama = Reading::of(
            "llamacpp:requests_processing 4\nllamacpp:requests_deferred 46\n\
             llamacpp:tokens_predicted_total 17029\nllamacpp:predicted_tokens_seconds nan\n",
        );
        assert_eq!(
            (llama.running, llama.waiting, llama.generation_tokens),
            (Some(4.0), Some(46.0), Some(17029.0))
        );
        let tgi = Reading::of(
            "tgi_batch_current_size 4\ntgi_queue_size 7\n\
             tgi_request_queue_duration_sum 0.5\ntgi_request_queue_duration_count 5\n",
        );
        assert_eq!(
            (tgi.running, tgi.waiting, tgi.queue_time_s, tgi.queue_times),
            (Some(4.0), Some(7.0), Some(0.5), Some(5.0))
        );
    }

    #[test]
    fn what_cannot_be_is_not_believed() {
        let hostile = Reading::of(
            "vllm:num_requests_running NaN\nvllm:num_requests_running{a=\"1\"} +Inf\n\
             vllm:num_requests_running{a=\"2\"} 1e308\nvllm:num_requests_running{a=\"3\"} -1\n\
             vllm:kv_cache_usage_perc 1.5\nvllm:num_requests_waiting",
        );
        assert!(!hostile.known(), "{hostile:?}");
        let twice = "vllm:num_requests_running{a=\"x\"} 5\nvllm:num_requests_running{a=\"x\"} 5\n";
        assert_eq!(Reading::of(twice).running, Some(5.0));
        let many: String = (0..3 * MAX_SERIES)
            .map(|i| format!("vllm:num_requests_running{{a=\"{i}\"}} 1\n"))
            .collect();
        assert_eq!(Reading::of(&many).running, Some(MAX_SERIES as f64));
        assert!(!Reading::of("up 1\nprocess_open_fds 9\n").known());
    }
}
