package doctor_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"diehard/shared/dev/embedded"
	"diehard/shared/dev/testenv"
	"diehard/streamer/doctor"
)

// What a profile forbids is named, also when it lets no query of the streamer through.
func TestAProfileThatForbidsWhatTheStreamerSends(t *testing.T) {
	t.Parallel()
	env := *testenv.New(t) // a copy: the shared connection is closed by its owner
	p := target(t, &env, env.PostgresURL)
	assert.Equal(t, doctor.OK, finding(t, p, "clickhouse", "profile").Level)

	p.ClickHouse = testenv.StartClickHouse(t, embedded.ClickHouseOptions{Profile: `
		<async_insert>1</async_insert> <insert_deduplicate>0</insert_deduplicate> <join_use_nulls>0</join_use_nulls>
		<constraints>
			<async_insert><const/></async_insert> <insert_deduplicate><const/></insert_deduplicate> <join_use_nulls><const/></join_use_nulls>
			<receive_timeout><max>5</max></receive_timeout> <max_execution_time><max>30</max></max_execution_time>
		</constraints>`}).Config("default")
	f := finding(t, p, "clickhouse", "profile")
	assert.Equal(t, doctor.Error, f.Level)
	assert.Equal(t, "profile default does not allow async_insert = 0, insert_deduplicate = 1, max_execution_time = 65, receive_timeout = 10", f.Actual)

	p.ClickHouse = testenv.StartClickHouse(t, embedded.ClickHouseOptions{Profile: "<max_memory_usage>500000000</max_memory_usage> <max_result_rows>1000</max_result_rows>"}).Config("default")
	f = finding(t, p, "clickhouse", "profile")
	assert.Equal(t, doctor.OK, f.Level)
	assert.Equal(t, "profile default, which limits max_memory_usage = 500000000, max_result_rows = 1000", f.Actual)
}
