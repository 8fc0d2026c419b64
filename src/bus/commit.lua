-- Commits the outcome of one entry, if it is still the caller's.
--
-- Atomically: only if the entry is still pending with this consumer and delivery count, writes all
-- effects and acknowledges the entry. So of several runs of an event one is committed, whole, and the
-- others leave no trace. Keys of the wrong type are found before anything is written.
--
-- KEYS[1]   the stream
-- KEYS[2..] the key of each effect
-- ARGV[1]   the group
-- ARGV[2]   the consumer
-- ARGV[3]   the entry's id
-- ARGV[4]   its delivery count
-- ARGV[5..] for each effect: the type that its key must have if it exists, 1 if the entry may be
--           acknowledged without it (else 0), the number of words, the words of the command without
--           its key: name, then what follows the key
-- Returns   {1, number of an effect left out or 0} committed; {0} not the caller's any more;
--           {-1, number of the effect whose key has the wrong type} nothing was written
-- Cost      O(log n + effects) for n pending
local stream, group, me, id = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local pending = redis.call('XPENDING', stream, group, id, id, 1)[1]
if not pending or pending[2] ~= me or pending[4] ~= tonumber(ARGV[4]) then
  return { 0 }
end
local commands, left_out, at = {}, 0, 5
for i = 2, #KEYS do
  local wanted, optional, words = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local found = redis.call('TYPE', KEYS[i]).ok
  if found == 'none' or found == wanted then
    local command = { ARGV[at + 3], KEYS[i] }
    for word = 1, words - 1 do
      command[#command + 1] = ARGV[at + 3 + word]
    end
    commands[#commands + 1] = command
  elseif optional == '1' then
    left_out = i - 1
  else
    return { -1, i - 1 }
  end
  at = at + 3 + words
end
for _, command in ipairs(commands) do
  redis.call(unpack(command))
end
redis.call('XACK', stream, group, id)
return { 1, left_out }
