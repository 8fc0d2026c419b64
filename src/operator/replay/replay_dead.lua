-- Publishes dead letters again and takes them out of the dead letters.
--
-- Atomically for each entry: only if it is still a dead letter, the event enters its stream and the
-- letter goes. So an event is in one of the two at any time, and repeating a call moves nothing
-- twice. What was moved is told as `operator.replayed` in the same step.
--
-- KEYS[1]  the dead-letter stream
-- KEYS[2]  the events stream
-- KEYS[3]  the broadcast, unless it lies in another slot
-- ARGV[1]  the run that the call belongs to
-- ARGV[2]  who replays
-- ARGV[3..] for each entry: its id, the number of words, the names and values of the event's fields
-- Returns  {error, then for each entry its id as an event}: '' for one that was no dead letter any
--          more. After an error (empty: none) nothing more was moved.
-- Cost     O(entries)
local answer, moved = move_letters(KEYS[1], KEYS[2], 3)
tell_moved(KEYS[3], ARGV[1], ARGV[2], 'dead', KEYS[1], KEYS[2], moved)
return answer
