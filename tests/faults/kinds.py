"""Which tests break what: the kinds of faults, and the tests of each, wherever they stand.

`pytest -m faults` runs them all, `pytest -m "faults and not slow"` those that take seconds, and both print how many of
each kind there were. An entry is a file below tests/, perhaps a class or a test in it, perhaps one of its cases. A test
that injects several faults says how many by `record_property("faults", n)`.
"""

KINDS = {
    "kills": (
        "engine/test_resume.py::test_killed",
        "engine/test_resume.py::test_iterations_resume_too",
        "engine/test_dense_runs.py::test_killed_and_resumed_runs_end_alike",
        "engine/test_guard.py::test_one_run_a_folder",
        "engine/test_guard.py::test_ends_clean_and_says_how_to_resume[dead worker]",
        "checkpoints/test_fetch.py::test_a_killed_download_resumes",
        "inference/test_folder.py::TestNothingIsLost::test_a_kill_leaves_records",
        "faults/test_kills.py",
    ),
    "signals": (
        "engine/test_guard.py::test_ends_clean_and_says_how_to_resume[term]",
        "engine/test_guard.py::test_ends_clean_and_says_how_to_resume[int]",
        "engine/test_guard.py::test_ends_clean_and_says_how_to_resume[term in write]",
        "engine/test_guard.py::test_signals_are_as_before_afterwards",
        "inference/test_folder.py::TestNothingIsLost::test_ctrl_c",
        "inference/test_command.py::test_a_run_that_is_stopped_says_what_is_finished",
        "cli/test_cli_errors.py::test_control_c_says_how_to_resume",
        "cli/test_cli_errors.py::test_a_reader_that_leaves_ends_the_command_quietly",
    ),
    "full disks": (
        "engine/test_guard.py::test_ends_clean_and_says_how_to_resume[full disk]",
        "engine/test_guard.py::test_ends_clean_and_says_how_to_resume[full disk of logs]",
        "checkpoints/test_fetch.py::test_full",
        "checkpoints/test_fetch.py::test_unwritable_folder",
        "inference/test_folder.py::TestNothingIsLost::test_a_full_disk",
        "inference/test_folder.py::TestNothingIsLost::test_a_disk_that_is_full_for_the_tables_too",
        "inference/test_folder.py::TestFolders::test_the_error_names_what_cannot_be_written",
        "inference/test_command.py::test_a_full_disk_ends_in_one_line",
        "inference/test_video.py::test_frames_that_were_not_written_are_noticed",
        "cli/test_cli_errors.py::test_places_that_cannot_be_written",
        "test_bad_input.py::test_a_failed_write_leaves_the_old_file",
        "faults/test_full_disks.py",
    ),
    "bit flips": (
        "engine/test_damaged_checkpoints.py",
        "checkpoints/test_fetch.py::test_corrupted_byte",
        "checkpoints/test_fetch.py::test_a_damaged_file_is_replaced_or_gone",
        "checkpoints/test_publishing.py::test_a_changed_byte_is_noticed_whatever_the_file_is_called",
        "test_bad_input.py::TestWeights::test_truncated",
        "test_bad_input.py::TestWeights::test_wrong_hash",
        "faults/test_bit_flips.py",
    ),
    "hostile files": (
        "test_bad_input.py::TestWeights::test_code_is_refused",
        "engine/test_damaged_checkpoints.py::test_config_in_a_checkpoint_is_not_run",
        "checkpoints/test_loading.py::TestFiles",
        "checkpoints/test_publishing.py::test_facts_of_a_file_are_data_and_checked",
        "checkpoints/test_publishing.py::test_facts_that_are_no_json",
        "checkpoints/test_conversion.py::test_nothing_that_lies_beside_the_weights_is_run",
        "checkpoints/test_catalogue.py::test_an_entrys_file_is_a_name",
        "checkpoints/test_fetch.py::test_what_is_not_downloaded_from",
        "checkpoints/test_fetch.py::test_redirects_to_what_is_not_downloaded_from",
        "tasks/test_published.py::test_a_file_asks_for_nothing_but_tasks",
        "cli/test_cli_configs.py::test_other_formats_are_refused",
        "inference/test_pictures.py::TestAddresses",
        "faults/test_hostile_files.py",
    ),
    "broken pictures": (
        "test_bad_input.py::TestData::test_unreadable_picture",
        "test_bad_input.py::TestCommands::test_bad_picture_among_training_data",
        "data/test_data_files.py::test_broken_and_huge_pictures_are_named",
        "data/test_data_files.py::TestUnreadable",
        "data/test_segmentation.py::test_unreadable_masks",
        "data/test_coco.py::test_faults_name_the_file_and_the_annotation",
        "data/test_voc.py::test_faults_name_the_file_and_the_object",
        "data/test_yolo.py::test_faults_name_the_file_and_the_line",
        "inference/test_folder.py::TestNothingIsLost::test_broken_pictures_are_skipped_and_listed",
        "inference/test_predictor.py::TestBrokenPictures",
        "inference/test_pictures.py::test_bytes_that_are_no_picture",
        "inference/test_pictures.py::TestFolders::test_a_broken_link_is_a_picture_that_cannot_be_read",
        "inference/test_video.py::test_a_damaged_video_is_skipped",
        "inference/test_video.py::test_a_video_that_ends_early_says_so",
        "faults/test_broken_pictures.py",
    ),
    "dead ranks": (
        "engine/test_dead_rank.py",
        "engine/test_distributed.py::test_nobody_waits_for_a_config_that_cannot_be_written",
    ),
}


def kind_of(node_id: str) -> str | None:
    """The kind of fault that a test injects, by the longest entry that fits it.

    Args:
        node_id: As pytest gives it, relative to the folder above tests/.
    """
    name = node_id.removeprefix("tests/")
    fitting = [(len(entry), kind) for kind, entries in KINDS.items() for entry in entries if name.startswith(entry)]
    return max(fitting)[1] if fitting else None
