-- Lets a call through only while the caller owns the partition. It is put before a script, which then has one key and
-- one argument more than it says, the last ones; the script itself sees neither.
--
-- KEYS[#KEYS] the fence
-- ARGV[#ARGV] the number that it was raised to for the caller
-- Fails     with NOTOWNER, and nothing done, if it is another number, or is gone
-- Cost      O(1)
if redis.call('GET', KEYS[#KEYS]) ~= ARGV[#ARGV] then
  return redis.error_reply('NOTOWNER the partition has another owner by now')
end
KEYS[#KEYS], ARGV[#ARGV] = nil, nil
